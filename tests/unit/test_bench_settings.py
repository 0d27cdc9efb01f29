"""Configuration: defaults are complete, every key can be overridden, and nonsense is refused in one sentence."""

from __future__ import annotations

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
        ("profile.datasets.quality.test_views=null", lambda s: s.profile.datasets["quality"].test_views is None),
    ],
)
def test_keys_can_be_overridden(override: str, value: object) -> None:
    assert callable(value) and value(load_settings([override]))


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("profile=huge", "profile/huge"),
        ("cells.sp=1", "cells.sp"),
        ("+extra=1", "extra"),
        ("nonsense", "'nonsense'"),
        ("cells.sp_size=[0]", "cells.sp_size"),
        ("cells.sp_size=[]", "cells.sp_size"),
        ("cells.seeds=[1,1]", "cells.seeds"),
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


def test_help_and_configuration_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "retry=" in capsys.readouterr().out
    assert main(["--print-config", "cells.sp_size=[4]"]) == 0
    assert "sp_size:\n  - 4" in capsys.readouterr().out
