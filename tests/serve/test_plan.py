"""What is to be served: nothing is loaded that is not, and what is wrong is told before anything is."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from broadsheet.console import InputError
from broadsheet.serve.guard import Limits
from broadsheet.serve.plan import ServingPlan


def test_the_page_alone_imports_no_model_library(tmp_path: Path) -> None:
    program = f"""
import sys
from pathlib import Path
from broadsheet.serve.guard import KeyRing, Limits
from broadsheet.serve.plan import ServingPlan
plan = ServingPlan(Limits(), page=Path({str(tmp_path / "page.sqlite")!r}), jobs=Path({str(tmp_path / "jobs")!r}))
plan.check()
app = plan.app(KeyRing())
print([name for name in ("torch", "transformers", "sklearn", "scipy", "pandas", "datasets") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_what_is_served_is_said() -> None:
    page, models = Path("page.sqlite"), {"models": ["default"]}
    assert ServingPlan(Limits(), page=page).what == "the page is on {url}"
    assert ServingPlan(Limits(), models=models).what == "serving on {url}/v1"
    assert ServingPlan(Limits(), models=models, page=page).what == "serving on {url}/v1, the page is on {url}"
    assert ServingPlan(Limits(), agents=True).what == "tools for agents are on {url}/mcp"


def test_whom_the_page_asks_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example.org")
    plan = ServingPlan(Limits(), page=Path("page.sqlite"), sources=("hf", "hf:2024-08"), every=21_600.0)
    where = "https://hub.example.org about what is new; https://hub.example.org about 2024-08"
    assert plan.asks == f"hf, hf:2024-08 every 6 h ({where})"


def test_a_plan_goes_to_other_processes() -> None:
    plan = ServingPlan(Limits(), models={"models": ["default"], "attend": None}, page=Path("page.sqlite"))
    assert pickle.loads(pickle.dumps(plan)) == plan


def test_what_is_missing_is_told_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a folder"):
        ServingPlan(Limits(), agents=True, results=tmp_path / "nothing").check()


def test_the_page_needs_nothing_that_only_sources_need(tmp_path: Path) -> None:
    program = f"""
import sys
sys.modules |= dict.fromkeys(("bibtexparser", "pylatexenc", "httpx2", "httpcore2"))
from pathlib import Path
from broadsheet.serve.guard import KeyRing, Limits
from broadsheet.serve.plan import ServingPlan
page, jobs = Path({str(tmp_path / "page.sqlite")!r}), Path({str(tmp_path / "jobs")!r})
plan = ServingPlan(Limits(hosts=()), page=page, jobs=jobs)
plan.check()
app = plan.app(KeyRing())
from broadsheet.daily import api, export
from broadsheet.daily.screens import routes, subscribing
print(len(export.atom([], title="none", at="2024-08-18T00:00:00Z")) > 0)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
