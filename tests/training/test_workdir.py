"""The folder of a training: one process at a time, resumed from the same config alone, nothing else touched."""

from __future__ import annotations

import pytest

from broadsheet.console import InputError
from broadsheet.training.workdir import starting_over, workdir

MADE = {"rate": 1e-3, "minutes": 5, "sizes": (2, 4), "model": "0123", "objective": {"name": "a"}}
OPTIONS = {"finished": "done.json", "mutable_keys": ["minutes"], "kind": "embedder"}


def test_without_an_out_the_folder_is_gone_at_the_end():
    with workdir(None, {}, finished="done.json") as folder:
        (folder / "a").touch()
    assert not folder.exists()


def test_a_folder_is_resumed_with_the_same_settings_alone(tmp_path):
    out = tmp_path / "deep" / "out"
    with workdir(out, MADE, **OPTIONS) as folder:
        assert folder == tmp_path / "deep" / "out.partial"
        (folder / "kept").touch()
    with workdir(out, MADE | {"minutes": 9}, **OPTIONS) as folder:
        assert (folder / "kept").exists()
    with pytest.raises(InputError, match=r"other model; rate 0\.001, now 0\.1: resume"):
        workdir(out, MADE | {"model": "89ab", "rate": 0.1}, **OPTIONS).__enter__()
    with pytest.raises(InputError, match="other model '0123', now '89ab': resume"):
        workdir(out, MADE | {"model": "89ab"}, fingerprints=(), **OPTIONS).__enter__()
    with pytest.raises(InputError, match=r"other objective\.name 'a', now 'b'; objective\.size None, now 3:"):
        workdir(out, MADE | {"objective": {"name": "b", "size": 3}}, **OPTIONS).__enter__()
    with workdir(out, MADE | {"rate": 0.1}, force=True, **OPTIONS) as folder:
        assert not (folder / "kept").exists()
    (folder / "settings.json").write_text("{")
    with pytest.raises(InputError, match=r"settings\.json is damaged"):
        workdir(out, MADE, **OPTIONS).__enter__()


def test_what_was_begun_otherwise_or_is_damaged_is_begun_anew_where_its_owner_says_so(tmp_path, capsys):
    out = tmp_path / "out"
    with workdir(out, MADE, **OPTIONS) as folder:
        (folder / "kept").touch()
    with starting_over():
        with workdir(out, MADE, **OPTIONS):
            assert (folder / "kept").exists(), "the same is resumed"
        with workdir(out, MADE | {"rate": 0.1}, **OPTIONS):
            assert not (folder / "kept").exists()
        assert "was begun with other rate 0.001, now 0.1" in capsys.readouterr().err
        (folder / "settings.json").write_text("{")
        (folder / "kept").touch()
        with workdir(out, MADE, **OPTIONS):
            assert not (folder / "kept").exists()
        assert "settings.json is damaged: it is begun anew" in capsys.readouterr().err
        (out).mkdir()
        (out / "done.json").touch()
        with pytest.raises(InputError, match="is finished"):
            workdir(out, MADE, **OPTIONS).__enter__()
    (out / "done.json").unlink()
    with pytest.raises(InputError, match="begun with other rate"):
        workdir(out, MADE | {"rate": 0.1}, **OPTIONS).__enter__()


def test_a_finished_out_is_replaced_when_forced_also_after_the_forced_run_was_cut_off(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with workdir(out, MADE, **OPTIONS):  # an empty folder is nothing
        pass
    (out / "done.json").touch()
    with pytest.raises(InputError, match="is finished"):
        workdir(out, MADE, **OPTIONS).__enter__()
    for force in (True, False):
        with workdir(out, MADE, force=force, **OPTIONS) as folder:
            pass
    assert (out / "done.json").exists()
    assert folder.exists()


@pytest.mark.parametrize("force", [True, False])
def test_what_is_something_else_is_left_alone(tmp_path, force):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").touch()
    for out in (tmp_path / "notes", tmp_path / "notes" / "a.txt"):
        with pytest.raises(InputError, match="exists and is no saved embedder"):
            workdir(out, MADE, force=force, **OPTIONS).__enter__()
    with pytest.raises(InputError, match="cannot write"):
        workdir(tmp_path / "notes" / "a.txt" / "out", MADE, force=force, **OPTIONS).__enter__()


def test_one_process_works_in_it_at_a_time_and_the_lock_goes_with_the_folder(tmp_path):
    with workdir(tmp_path / "out", MADE, **OPTIONS) as folder:
        with pytest.raises(InputError, match="another broadsheet is writing"):
            workdir(tmp_path / "out", MADE, **OPTIONS).__enter__()
        folder.joinpath("settings.json").unlink()
        folder.rmdir()
    assert not list(tmp_path.iterdir())
