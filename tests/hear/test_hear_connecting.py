"""Windows, joined streams and connectors: exact frame counts, and tokens that depend on their frames alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from broadsheet.console import InputError
from broadsheet.hear.connectors import StackLinear
from broadsheet.hear.salmonn import Synchronised, WindowQFormer
from broadsheet.hear.training.schedule import learning_rate
from broadsheet.hear.windows import Windows
from broadsheet.training.schedules import SCHEDULES, Progress


def connector(width: int = 6, windows: Windows | None = None, **settings: int) -> WindowQFormer:
    torch.manual_seed(0)
    sizes = {"queries": 1, "hidden": 16, "heads": 2, "layers": 2, "ffn": 32, **settings}
    return WindowQFormer(width, 8, windows or Windows(), **sizes).eval()


def test_thirty_seconds_are_88_windows_of_17_frames_and_the_tail_is_dropped() -> None:
    windows = Windows(0.333333)
    assert (windows.window, windows.step, windows.count(1500)) == (17, 17, 88)
    frames = torch.arange(1500.0)[None, :, None]
    cut = windows.cut(frames)
    assert cut.shape == (1, 88, 17, 1)
    assert cut[0, -1, -1, 0] == 1495  # four frames are left


@pytest.mark.parametrize(("seconds", "frames"), [(0.25, 12), (0.35, 18), (1.0, 50), (0.333333, 17)])
def test_windows_round_half_to_even(seconds: float, frames: int) -> None:
    assert Windows(seconds).window == frames


def test_a_window_shorter_than_half_a_frame_is_refused() -> None:
    with pytest.raises(InputError, match="at least one frame"):
        Windows(0.005)


@given(st.integers(1, 200), st.integers(1, 30), st.integers(1, 30))
def test_every_window_holds_consecutive_frames(frames: int, window: int, step: int) -> None:
    windows = Windows(window, step, frame_rate=1.0)
    cut = windows.cut(torch.arange(1.0, frames + 1)[None, :, None])[0, :, :, 0]
    assert len(cut) == windows.count(frames)
    for place, each in enumerate(cut):
        expected = torch.arange(window) + place * step + 1.0
        assert torch.equal(each, expected.where(expected <= frames, 0.0))
    assert len(cut) == 1 or len(cut) * step + window > frames


def test_a_token_depends_on_the_frames_of_its_window_alone() -> None:
    made = connector()
    frames = torch.randn(1, 100, 6)
    before = made(frames)
    for frame, token in ((0, 0), (16, 0), (17, 1), (84, 4)):
        changed = frames.clone()
        changed[0, frame] += 1
        differs = (made(changed) - before).abs().amax(-1)[0] > 1e-6
        assert differs.nonzero().flatten().tolist() == [token]
    changed = frames.clone()
    changed[0, 85:] += 1  # the tail
    assert torch.equal(made(changed), before)


def test_tokens_stand_in_time_order_with_those_of_a_window_together() -> None:
    made = connector(queries=3)
    frames = torch.randn(2, 40, 6)
    tokens = made(frames)
    assert tokens.shape == (2, 6, 8)
    alone = made(frames[1:, 17:34])
    torch.testing.assert_close(tokens[1:, 3:], alone)


def test_the_block_is_blip_2s_with_cross_attention_in_every_layer() -> None:
    made = connector(queries=2)
    config = Blip2QFormerConfig(
        hidden_size=16,
        num_attention_heads=2,
        num_hidden_layers=2,
        intermediate_size=32,
        encoder_hidden_size=6,
        cross_attention_frequency=1,
        use_qformer_text_input=False,
    )
    other = Blip2QFormerModel(config).eval()
    other.load_state_dict(made.qformer.state_dict())
    frames = torch.randn(1, 17, 6)
    read = other(query_embeds=made.query, encoder_hidden_states=frames).last_hidden_state
    torch.testing.assert_close(made(frames), made.projection(read), rtol=0, atol=0)
    assert all(layer.has_cross_attention for layer in made.qformer.encoder.layer)


@pytest.mark.parametrize("kind", [WindowQFormer, StackLinear])
def test_tokens_begin_with_the_norm_asked_for(kind: type) -> None:
    torch.manual_seed(0)
    sizes = {} if kind is StackLinear else {"hidden": 64, "heads": 4, "ffn": 64}
    made = kind(32, 256, Windows(), queries=2, **sizes).eval()
    made.match_norm(3.2)
    frames = torch.nn.functional.layer_norm(torch.randn(4, 85, 32), (32,))
    assert made(frames).norm(dim=-1).mean().item() == pytest.approx(3.2, rel=0.15)


def test_the_plain_connector_stacks_the_frames_of_a_window() -> None:
    torch.manual_seed(0)
    made = StackLinear(3, 5, Windows(2, frame_rate=1.0))
    frames = torch.randn(1, 5, 3)
    by_hand = torch.stack([made.projection(frames[0, 2 * k : 2 * k + 2].flatten()) for k in range(2)])
    torch.testing.assert_close(made(frames)[0], by_hand)


def test_streams_are_normalised_each_and_the_shorter_is_zero_after_its_end() -> None:
    joined = Synchronised([3, 2], [50.0, 12.5])
    torch.nn.init.constant_(joined.norms[1].bias, 7.0)  # a norm that has learnt to make zeros something else
    speech, audio = torch.randn(2, 10, 3), torch.randn(2, 2, 2)
    made, frames = joined([speech, audio], torch.tensor([[10, 2], [9, 1]]))
    assert made.shape == (2, 10, 5)
    assert frames.tolist() == [10, 9]
    torch.testing.assert_close(made[0, :, :3], joined.norms[0](speech[0]))
    torch.testing.assert_close(made[0, 0:4, 3:], joined.norms[1](audio[0, :1]).expand(4, -1))
    assert (made[0, 8:, 3:] == 0).all()
    assert (made[1, 4:, 3:] == 0).all()
    assert (made[1, 9:, :3] == 0).all()


def test_what_lies_beyond_a_clips_length_changes_nothing() -> None:
    joined = Synchronised([3], [50.0])
    stream = torch.randn(2, 10, 3)
    lengths = torch.tensor([[10], [4]])
    before, _ = joined([stream], lengths)
    stream[1, 4:] = 100
    assert torch.equal(joined([stream], lengths)[0], before)


def test_one_stream_is_the_same_path_and_a_zeroed_one_keeps_the_shape() -> None:
    joined = Synchronised([3, 2], [50.0, 50.0])
    speech, audio, lengths = torch.randn(1, 8, 3), torch.randn(1, 8, 2), torch.tensor([[8, 8]])
    both, _ = joined([speech, audio], lengths)
    muted, _ = joined([speech, torch.zeros_like(audio)], lengths)
    single, _ = Synchronised([3], [50.0])([speech], lengths[:, :1])
    assert both.shape == muted.shape
    assert torch.equal(both[..., :3], single)
    assert torch.equal(muted[..., :3], single)


def test_rates_that_do_not_divide_the_common_one_are_refused() -> None:
    with pytest.raises(InputError, match="divisors of 50"):
        Synchronised([3], [30.0])


def test_the_learning_rate_has_the_authors_quirks() -> None:
    settings = {"epochs": 2, "steps_per_epoch": 10, "warmup_steps": 15, "peak": 1.0, "minimum": 0.0, "start": 0.0}
    rates = [learning_rate(step, **settings) for step in range(20)]
    assert rates[:10] == pytest.approx([step / 15 for step in range(10)])
    assert rates[10:15] == pytest.approx([step / 15 for step in range(5)])  # begins anew within the second epoch
    assert rates[15] == pytest.approx(0.5 * (1 + torch.cos(torch.tensor(torch.pi * 15 / 20)).item()))
    with pytest.raises(InputError, match="step -1"):
        learning_rate(-1)
    for step in range(20):
        share = SCHEDULES["salmonn"](Progress(step / 20, step, steps=20, epoch_steps=10), 0.75)
        settings = {"epochs": 2, "steps_per_epoch": 10, "warmup_steps": 15}
        assert 3e-5 * share == pytest.approx(learning_rate(step, **settings))
