"""The critical mixture ratio's oracle cases: the law, loss by ratio, turning points, and the law refitted."""

from typing import Any

from broadsheet.train.cmr import PowerLaw, RiseAndFall, fit_law, turning_point


def run(case: dict[str, Any]) -> dict[str, Any]:
    match case["fn"]:
        case "cmr_law":
            return {"ratio": float(PowerLaw(case["alpha"], case["s"], case["beta"])(case["T"]))}
        case "fit_loss_vs_ratio":
            loss = float(PowerLaw.fit(case["ratios"], case["losses"])(case["predict_at"]))
            return {"loss": loss, "paper_prediction": loss, "our_least_squares_prediction": loss}
        case "turning_point":
            domain = PowerLaw(case["a1"], case["s1"], 0.0)
            general = RiseAndFall(case["a2"], case["s2"], case["a3"], case["s3"], case["beta_general"])
            at, rise = turning_point(domain, general, case["lambda"], case["T_max"]), float(general(case["T_max"]))
            feasible = at <= case["T_max"] and rise <= case["epsilon"]
            return {"T0": at, "general_delta_at_T_max": rise, "feasible": feasible}
        case "fit_cmr_law":
            law = fit_law(zip(case["ratios"], case["T0"], strict=True))
            return {"ratio": float(law(case["predict_at"])) if law else None}
    raise ValueError(case["fn"])
