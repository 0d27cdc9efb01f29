"""Records: what is written is read again, and what was tampered with, or holds secrets, is not."""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from bench.cells import Cell
from bench.devices import DeviceState
from bench.errors import RecordError
from bench.memory import MemoryWatch
from bench.outcomes import record_of_error, status_of
from bench.records import SCHEMA_FILE, SCHEMA_VERSION, Failure, Record, parse_record, schema_text, seal
from bench.sanitize import Sanitizer, local_sanitizer
from bench.store import Damaged, Store, read_plan, store_of
from bench.upgrades import upgrade_record
from tests.bench_cases import WHEN, environment, quality_result, record, tiny_plan


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.at(tmp_path / "results", "machine", "table1", version="9.9")


@pytest.fixture(scope="module")
def cells() -> list[Cell]:
    return list(tiny_plan().plan.cells.values())


def resealed(text: str, **changes: object) -> str:
    """The document with other values and the digest that fits them, as only a program would make it."""
    values = {**json.loads(text), **changes, "digest": ""}
    unsealed = json.dumps(values, indent=1)
    digest = "text-sha256:" + hashlib.sha256(unsealed.encode()).hexdigest()
    return unsealed.replace('"digest": ""', f'"digest": "{digest}"')


def test_what_is_written_is_read(store: Store, cells: list[Cell]) -> None:
    written = [store.write(record(cell)) for cell in cells[:2]]
    assert [store.read(cell.id) for cell in cells[:2]] == written
    assert store.read(cells[2].id) is None
    assert store.record_ids() == sorted(cell.id for cell in cells[:2])
    path = store.record_path(cells[0].id)
    assert path == store.results_dir / "9.9" / "machine" / "table1" / f"{cells[0].id}.json"
    assert sorted(p.name for p in path.parent.iterdir()) == sorted(f"{cell.id}.json" for cell in cells[:2])


def test_infinite_psnr_survives_strict_json(store: Store, cells: list[Cell]) -> None:
    store.write(record(cells[0], quality=quality_result({"0": [math.inf, 20.0]})))
    json.loads(store.record_path(cells[0].id).read_text(), parse_constant=lambda name: pytest.fail(name))
    again = store.read(cells[0].id)
    assert again is not None and again.quality is not None
    assert again.quality.scenes[0].views[0].psnr == math.inf


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: text.replace('"psnr": 20.0', '"psnr": 30.0'), "changed after it was written"),
        (lambda text: text.replace('"attempt": 1', '"attempt": 2'), "changed after it was written"),
        (lambda text: text[: len(text) // 2], "truncated"),
        (lambda text: "", "truncated"),
        (lambda text: text.replace('"seed": 0', '"seed": 1'), "changed after it was written"),
        (lambda text: text.replace('"attempt": 1', '"attempt": NaN'), "changed"),
        (lambda text: "[1]", "truncated"),
        (lambda text: resealed(text, schema_version=7), "schema_version 7"),
        (lambda text: resealed(text, status="fine"), "status"),
        (lambda text: resealed(text, cell_id="0" * 16), "holds the record of cell 0000000000000000"),
        (lambda text: text.replace("text-sha256:", "sha256:"), "changed after it was written"),
        (lambda text: text.replace('"attempt": 1', '"attempt":  1'), "changed after it was written"),
    ],
)
def test_a_damaged_record_is_found_and_named(store: Store, cells: list[Cell], damage: object, said: str) -> None:
    store.write(record(cells[0]))
    path = store.record_path(cells[0].id)
    text = path.read_text()
    assert callable(damage) and damage(text) != text
    path.write_text(damage(text))
    with pytest.raises(RecordError) as error:
        store.read(cells[0].id)
    assert str(path) in str(error.value) and said in str(error.value)
    assert isinstance(store.read_all([cells[0].id])[cells[0].id], Damaged)


def test_a_record_under_another_cells_name_is_found(store: Store, cells: list[Cell]) -> None:
    store.write(record(cells[0]))
    os.rename(store.record_path(cells[0].id), store.record_path(cells[1].id))
    with pytest.raises(RecordError, match=f"holds the record of cell {cells[0].id}"):
        store.read(cells[1].id)


def test_inconsistent_records_cannot_be_made(cells: list[Cell]) -> None:
    for changes in (
        {"quality": None},
        {"status": "failed"},
        {"status": "unavailable", "reason": ""},
        {"attempt": 0},
    ):
        with pytest.raises(ValidationError):
            record(cells[0], **changes)
    with pytest.raises(ValueError, match="the cell's content gives"):
        seal(record(cells[0], cell_id="0" * 16))


def test_nothing_private_is_written(store: Store, cells: list[Cell], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER", "annabel")
    monkeypatch.setenv("MY_API_KEY", "abcdefgh12345678")
    monkeypatch.setenv("HOME", "/somewhere/annabel")
    source = Path(__file__).resolve()
    secret = "hf_" + "a1B2" * 6
    trace = (
        f'File "{source}" in /somewhere/annabel/work and /home/bob/x, for annabel; key abcdefgh12345678, {secret}, '
        "https://bob:pw@host/x; the channel of annabelle stays"
    )
    failure = Failure(kind="ValueError", message=trace, traceback=trace, rank=0)
    store.write(record(cells[0], status="failed", reason=f"ValueError: {trace}", failure=failure))
    text = store.record_path(cells[0].id).read_text()
    for private in ("annabel/", "for annabel", "bob", "abcdefgh12345678", secret, str(source.parents[2]), "pw@"):
        assert private not in text, private
    assert "the channel of annabelle stays" in text
    assert store.read(cells[0].id) is not None


def test_sanitizer_leaves_common_words_alone() -> None:
    sanitizer = local_sanitizer({"USER": "root", "LOGNAME": "test", "SHORT_TOKEN": "abc"})
    assert sanitizer.text("the root of the test: abc") == "the root of the test: abc"
    assert Sanitizer({}).value({"a": ["/home/eve/x", 1, None]}) == {"a": ["~/x", 1, None]}


def test_errors_become_statuses(cells: list[Cell]) -> None:
    import torch

    from bench.errors import UnavailableError
    from tttlrm.errors import BackendUnavailableError

    assert status_of(MemoryError()) == "out_of_memory"
    assert status_of(torch.OutOfMemoryError("CUDA out of memory")) == "out_of_memory"
    assert status_of(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")) == "out_of_memory"
    assert status_of(UnavailableError("no data")) == "unavailable"
    assert status_of(BackendUnavailableError("no flash-attn")) == "unavailable"
    assert status_of(RuntimeError("shapes")) == "failed"
    try:
        raise RuntimeError("first line\nsecond line")
    except RuntimeError as error:
        made = record_of_error(error, cells[0], table="table1", job="j", attempt=3, started=WHEN)
    assert (made.status, made.reason, made.attempt) == ("failed", "RuntimeError: first line", 3)
    assert made.failure is not None and made.failure.traceback is not None
    assert "test_errors_become_statuses" in made.failure.traceback


def test_a_real_allocation_failure_is_out_of_memory() -> None:
    import torch

    with pytest.raises(RuntimeError) as error:
        torch.empty(2**58, dtype=torch.uint8)
    assert status_of(error.value) == "out_of_memory"


def test_sealing_is_repeatable(cells: list[Cell]) -> None:
    once = seal(record(cells[0]))
    assert once.intact and seal(once) == once
    assert not once.model_copy(update={"attempt": 9}).intact
    assert Record.model_validate_json(once.model_dump_json()) == once


def test_plans_are_sealed_too(store: Store) -> None:
    plan = tiny_plan().plan
    store.write_plan(plan)
    path = store.plan_path("tiny")
    assert read_plan(path) == plan
    assert store_of(path).root == store.root.resolve()
    path.write_text(path.read_text().replace('"absolute": 0.1', '"absolute": 9.0'))
    with pytest.raises(RecordError, match="plan-tiny.json: the plan was changed"):
        read_plan(path)
    path.write_text("{")
    with pytest.raises(RecordError, match=r"plan-tiny\.json: not a readable plan"):
        read_plan(path)
    with pytest.raises(RecordError, match="no such plan"):
        read_plan(path.with_name("plan-paper.json"))


def test_work_files_are_ignored_by_git(store: Store) -> None:
    assert store.work_dir().relative_to(store.results_dir / ".work") == store.root.relative_to(store.results_dir)
    assert (store.results_dir / ".work" / ".gitignore").read_text() == "*\n"


def test_environment_states_facts_without_the_hosts_name() -> None:
    import socket

    from bench.environment import machine_label, read_environment, slug

    real = read_environment(use_gpu=False)
    assert real.packages["torch"] and real.cpu_cores >= 1 and real.gpus == ()
    assert socket.gethostname() not in real.model_dump_json()
    assert machine_label("cpu").endswith(f"{real.cpu_cores}-cores")
    assert slug("Intel(R) Xeon(R) Gold 6330 CPU @ 2.00GHz 8 cores") == "intel-xeon-gold-6330-8-cores"
    assert slug("NVIDIA H100 80GB HBM3 x1") == "nvidia-h100-80gb-hbm3-x1"
    assert environment().code.commit


def test_code_state_is_read_from_git(tmp_path: Path) -> None:
    import subprocess

    from bench.environment import Code, read_code

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    assert read_code(tmp_path / "none") == Code(commit=None, dirty=None)
    git("init")
    (tmp_path / "code.py").write_text("1")
    git("add", ".")
    git("commit", "-m", "one")
    clean = read_code(tmp_path)
    assert clean.commit is not None and len(clean.commit) == 40 and clean.dirty is False
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "new.json").write_text("{}")
    assert read_code(tmp_path).dirty is False
    (tmp_path / "code.py").write_text("2")
    assert read_code(tmp_path).dirty is True


def test_memory_of_a_stretch_of_work() -> None:
    import torch

    watch = MemoryWatch("cpu", rank=3)
    tensor = torch.ones(30 * 2**18)  # 30 MiB
    del tensor
    peak = watch.read()
    assert peak.rank == 3 and peak.allocated_mib is None
    if not Path("/proc/self/clear_refs").exists():
        assert peak.resident_mib is None
        return
    assert peak.resident_growth_mib is not None and 25 < peak.resident_growth_mib < 60
    after = MemoryWatch("cpu").read()
    assert after.resident_growth_mib is not None and after.resident_growth_mib < 10


OLD = Path(__file__).parents[1] / "data" / "records"


@pytest.mark.parametrize("path", sorted(OLD.glob("*.json")), ids=lambda path: path.stem)
def test_records_of_version_1_are_read(path: Path) -> None:
    """Two real ones, as version 1 of the schema wrote them."""
    values = json.loads(path.read_text())
    assert values["schema_version"] == 1
    read = parse_record(path.read_bytes(), path)
    assert read.schema_version == SCHEMA_VERSION and read.cell_id == path.stem and read.status == "ok"
    if read.speed is not None:
        assert len(read.speed.reconstruct.stages["blocks"]) == 121
        assert read.speed.reconstruct.before == () and read.speed.flops is None
    else:
        assert read.quality is not None and len(read.quality.scenes) == 4
    with pytest.raises(RecordError, match="changed after it was written"):
        parse_record(path.read_bytes().replace(b'"attempt": 1', b'"attempt": 2'), path)


def test_clocks_of_version_1_move_to_the_phases() -> None:
    clocks = {
        "sm_mhz": 1980,
        "memory_mhz": 2619,
        "temperature_c": 40,
        "power_w": 600.0,
        "throttle_reasons": ["SwPowerCap"],
    }
    phase = {"stages": {}, "first_call": {}}
    old = {
        "schema_version": 1,
        "speed": {"reconstruct": phase, "show": phase, "clocks_before": [clocks], "clocks_after": []},
    }
    new = upgrade_record(old)
    (state,) = new["speed"]["reconstruct"]["before"]
    assert DeviceState.model_validate(state) == DeviceState(
        clock_mhz=1980, memory_clock_mhz=2619, temperature_c=40, power_w=600, throttle_reasons=("SwPowerCap",)
    )
    assert new["speed"]["show"]["after"] == [] and "clocks_before" not in new["speed"]
    assert old["schema_version"] == 1 and "clocks_before" in old["speed"]


def test_the_exported_schema_is_current_and_fits_records(cells: list[Cell]) -> None:
    assert SCHEMA_FILE.read_text() == schema_text(), "python -m bench schema > bench/schemas/record.schema.json"
    schema = json.loads(SCHEMA_FILE.read_text())
    assert schema["properties"]["schema_version"]["const"] == SCHEMA_VERSION
    written = json.loads(seal(record(cells[0])).model_dump_json())
    assert set(written) == set(schema["properties"])
    changelog = SCHEMA_FILE.with_name("CHANGELOG.md").read_text()
    assert all(f"## {version}\n" in changelog for version in range(1, SCHEMA_VERSION + 1))
