"""Imported results of other systems: read strictly, marked external, shown apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.__main__ import main
from bench.store import Store
from bench.tables import load_table, stale_files
from tests.bench_cases import MACHINE, record, tiny_plan

ROWS = "scene,view,psnr,ssim,lpips\ntruck,0,20.0,0.70,0.3\ntruck,1,22.0,0.72,0.3\ntrain,0,24.0,0.60,0.4\n"


def command(folder: Path, text: str = ROWS, **options: str) -> list[str]:
    file = folder / "values.csv"
    file.write_text(text)
    values = {"table": "table1", "system": "some-lrm", "citation": "Someone, 2025", "dataset": "gso", "views": "8"}
    values |= {"resolution": "512x512", "machine": MACHINE, "results": str(folder / "results"), **options}
    return ["import", str(file), *(part for key, value in values.items() for part in (f"--{key}", value))]


def test_imported_values_are_shown_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = tiny_plan().plan
    store = Store.at(tmp_path / "results", MACHINE, "table1")
    store.write_plan(plan)
    for cell in plan.cells.values():
        store.write(record(cell))
    assert main(command(tmp_path)) == 0
    table = load_table(store.plan_path("tiny"))
    (result,) = table.external
    assert result.source is not None and result.source.system == "some-lrm"
    assert result.scenes["psnr"] == {"truck": 21.0, "train": 24.0}
    assert len(table.verdicts) == 32 and result.cell_id not in table.plan.cells
    written = store.read(result.cell_id)
    assert written is not None and written.external is not None and written.attempt == 1
    text = (store.root / "table1-tiny.md").read_text()
    assert "## Other systems (external)" in text and "some-lrm: Someone, 2025 (`values.csv`, sha256 " in text
    assert "| some-lrm | 2 of gso | 512x512 | 8     | 22.50 [" in text
    assert "external=some-lrm dataset=gso input_views=8,1,psnr,truck,21" in (
        store.root / "table1-tiny-scenes.csv"
    ).read_text().replace('"', "")
    assert stale_files(store.plan_path("tiny")) == []
    assert main(command(tmp_path, ROWS.replace("20.0", "21.0"))) == 0
    (again,) = load_table(store.plan_path("tiny")).external
    assert again.cell_id == result.cell_id and again.scenes["psnr"]["truck"] == 21.5


def test_a_file_without_lpips(tmp_path: Path) -> None:
    assert main(command(tmp_path, "scene,view,psnr,ssim\na,0,20,0.5\n")) == 0
    store = Store.at(tmp_path / "results", MACHINE, "table1")
    (cell_id,) = store.record_ids()
    made = store.read(cell_id)
    assert made is not None and made.quality is not None and made.quality.lpips_absent == "not in the file"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the column scene is missing"),
        ("scene,view,psnr,ssim\n", "holds no views"),
        ("scene,view,psnr,ssim,fid\na,0,20,0.5,3\n", "unknown column 'fid'"),
        ("scene,view,psnr,ssim\na,0,20,nan\n", "line 2: ssim must be a number, not 'nan'"),
        ("scene,view,psnr,ssim\na,0,,0.5\n", "line 2: psnr must be a number"),
        ("scene,view,psnr,ssim\na,x,20,0.5\n", "line 2: view must be a number"),
        ("scene,view,psnr,ssim\na,0,20,0.5\na,0,20,0.5\n", "line 3: view 0 of a is there twice"),
        ("scene,view,psnr,ssim\na,0,20\n", "line 2: ssim must be a number, not None"),
        ("scene,view,psnr,ssim\n,0,20,0.5\n", "line 2: "),
        ("scene,view,psnr,ssim\na,0,20,0.5,7\n", "line 2: "),
    ],
)
def test_a_wrong_file_is_one_sentence(text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(tmp_path, text)) == 2
    error = capsys.readouterr().err
    assert said in error and "values.csv" in error and error.count("\n") == 1
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"views": "0"}, "--views must be at least 1"),
        ({"table": "table99"}, "there is no table 'table99'"),
        ({"machine": "../up"}, "--machine must be"),
        ({"system": " "}, "must say something"),
    ],
)
def test_wrong_options_are_one_sentence(
    options: dict[str, str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(tmp_path, **options)) == 2
    assert said in capsys.readouterr().err
