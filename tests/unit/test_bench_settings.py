"""Configuration: defaults are complete, every key can be overridden, and nonsense is refused in one sentence."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from bench.__main__ import main
from bench.errors import SettingsError
from bench.settings import compose, load_settings, parse_settings


def test_defaults_of_both_profiles_are_valid() -> None:
    tiny, paper = load_settings(), load_settings(["profile=paper"])
    assert (tiny.profile.name, tiny.resolved_device) == ("tiny", "cpu")
    assert (paper.profile.name, paper.resolved_device) == ("paper", "cuda")


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("cells.sp_size=[1,2]", lambda s: s.cells.sp_size == (1, 2)),
        ("profile.sampling.limit_s=7", lambda s: s.profile.sampling.limit_s == 7),
        ("profile.model.width=32", lambda s: s.profile.model["width"] == 32),
        ("tolerances.psnr.absolute=0.5", lambda s: s.tolerances["psnr"].absolute == 0.5),
        ("cluster.cell_limit_s=5", lambda s: s.cluster.cell_limit_s == 5),
        ("results_dir=elsewhere", lambda s: s.results_dir == Path("elsewhere")),
        ("profile.datasets.gso.test_views=null", lambda s: s.profile.datasets["gso"].test_views is None),
        (
            "profile.scales.object.resolutions={256x256: [32, 32]}",
            lambda s: s.profile.scales["object"].resolutions == {"256x256": (32, 32), "512x512": (128, 128)},
        ),
        ("profile.scales.room.views.16=4", lambda s: s.profile.scales["room"].views["16"] == 4),
    ],
)
def test_keys_can_be_overridden(override: str, value: object) -> None:
    assert callable(value) and value(load_settings([override]))


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("profile=huge", "profile/huge"),
        ("cells.sp=1", "cells.sp: no such key; `python -m bench --print-config` lists all"),
        ("foo=1", "foo: no such key; `python -m bench --print-config` lists all"),
        ("cluster.partition=gpu", "cluster.partition: no such key; `python -m bench --print-config` lists all"),
        ("+extra=1", "extra"),
        ("nonsense", "'nonsense'"),
        ("cells.sp_size=[0]", "cells.sp_size"),
        ("cells.sp_size=[]", "cells.sp_size"),
        ("cells.seeds=[1,1]", "cells.seeds"),
        ("cells.kinds=[]", "cells.kinds: the list is empty; give at least one value"),
        ("cells.rows=[]", "cells.rows: the list is empty; give at least one value, or null for all"),
        ("cells.seeds=[]", "cells.seeds: the list is empty"),
        ("cells.seeds=[0,-1]", "cells.seeds: every seed must be at least 0, not -1"),
        (
            "cells.attention_backend=fast",
            "cells.attention_backend: unknown attention backend 'fast'; choose one of auto",
        ),
        ("retry=maybe", "retry"),
        ("machine=../up", "machine"),
        ("profile.sampling.confidence=1.5", "profile.sampling.confidence"),
        ("tolerances.psnr.absolute=-1", "tolerances.psnr.absolute"),
    ],
)
def test_bad_overrides_name_the_key(override: str, named: str) -> None:
    with pytest.raises(SettingsError) as error:
        load_settings([override])
    assert named in str(error.value)
    assert "\n" not in str(error.value)


def test_composing_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    parse_settings(compose())
    assert Path.cwd() == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_wrong_usage_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table=table99"]) == 2
    error = capsys.readouterr().err
    assert "table99" in error and "table1" in error


@pytest.mark.parametrize("override", ["cells.rows=[]", "cells.kinds=[]", "cells.seeds=[-1]", "cells.rows=[9]"])
def test_cells_that_cannot_be_exit_with_2(override: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"results_dir={tmp_path / 'results'}", override]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and override.partition("=")[0] in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.write_text("")
    assert main([f"results_dir={file}", "machine=here", "cells.rows=[1]", "quiet=true"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"error: {file}/") and lines[0].endswith(": Not a directory")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_interrupt(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bench.__main__._dispatch", lambda arguments: signal.raise_signal(number))
    before = signal.signal(number, signal.SIG_DFL)
    try:
        assert main([]) == 130
        assert signal.getsignal(number) == signal.SIG_DFL, "the caller's handler is put back"
    finally:
        signal.signal(number, before)
    assert capsys.readouterr().err.startswith("interrupted")


def test_a_hangup_that_is_ignored_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    def dispatch(arguments: list[str]) -> int:
        signal.raise_signal(signal.SIGHUP)
        return 0

    monkeypatch.setattr("bench.__main__._dispatch", dispatch)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        assert main([]) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_help_and_configuration_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "retry=" in capsys.readouterr().out
    assert main(["--print-config", "cells.sp_size=[4]"]) == 0
    assert "sp_size:\n  - 4" in capsys.readouterr().out
