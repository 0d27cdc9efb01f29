"""A method that the suite does not know goes through all of it, as docs/adding-a-method.md says, by settings alone."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from bench.__main__ import main
from bench.store import Store

SETTINGS = [
    '+table.methods.billboards={builder: "tests.third_method:build", model: {distance: 2.0}}',
    "+profile.weights.quality.billboards=none",
    "+profile.weights.speed.billboards=none",
    "+table.rows=[{method: billboards, resolution: [256, 256], input_views: 8}]",
    "cells.rows=[9]",
    "machine=here",
    "quiet=true",
    "profile.lpips=false",
    "profile.sampling.limit_s=0.2",
]


def test_a_third_method_from_cells_to_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).resolve().parents[2])  # where its module can be imported from
    assert main([*SETTINGS, f"results_dir={tmp_path}"]) == 0
    store = Store.at(tmp_path, "here", "table1")
    records = [store.read(cell_id) for cell_id in store.record_ids()]
    assert [record.status for record in records if record] == ["ok", "ok"]
    assert {record.cell.builder for record in records if record} == {"tests.third_method:build"}
    speed = next(record.speed for record in records if record and record.speed)
    assert list(speed.reconstruct.stages) == ["place", "paint"]
    assert speed.flops is None and speed.gaussians == 8 * 96 * 96
    rows = list(csv.DictReader((store.root / "table1-tiny.csv").open()))
    mine = {row["column"]: row for row in rows if row["row"].startswith("method=billboards")}
    assert 9 < float(mine["psnr"]["measured"]) < 25 and float(mine["time_s"]["measured"]) < 1
    assert mine["psnr"]["verdict"] == "not comparable" and mine["psnr"]["printed"] == ""


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ('+table.methods.mine={builder: "tests.third_method:nothing"}', None),
        ("+table.methods.mine={builder: nonsense}", "table.methods.mine.builder"),
        ("+table.rows=[{method: mine}]", "needs resolution"),
        ("+table.rows=[{method: tttlrm, resolution: [256, 256], input_views: 8, virtual_views: 8}]", "there already"),
    ],
)
def test_a_wrong_method_is_one_sentence(
    setting: str, said: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main([setting, f"results_dir={tmp_path}", "machine=here", "dry_run=true"])
    if said is None:  # found out when it is built
        from bench.methods import load_builder
        from tttlrm.errors import UserError

        assert status == 0
        with pytest.raises(UserError, match="builder tests.third_method:nothing: module .* has no attribute"):
            load_builder("tests.third_method:nothing")
        return
    assert status == 2 and said in capsys.readouterr().err
