"""What is read of a device, and what a time is held against."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from bench.cells import Cell
from bench.devices import DeviceState, energy_used, nvml_state, read_state, read_states
from bench.methods import build_method
from bench.peak import measured_peak, reconstruction_flops
from bench.timing import OneRank
from tests.bench_cases import tiny_plan


class Refused(Exception):
    """What NVML raises."""


def nvml(**answers: Any) -> SimpleNamespace:
    """The driver's interface, with these answers; it refuses every other question."""

    def ask(name: str) -> Any:
        def answer(handle: object, *arguments: object) -> Any:
            if name not in answers:
                raise Refused(name)
            value = answers[name]
            return value[arguments[0]] if isinstance(value, dict) else value

        return answer

    names = ("CurrentClocksThrottleReasons", "ClockInfo", "Temperature", "PowerUsage", "TotalEnergyConsumption")
    questions = {f"nvmlDeviceGet{name}": ask(name) for name in names}
    constants = {"NVML_CLOCK_SM": 1, "NVML_CLOCK_MEM": 2, "NVML_TEMPERATURE_GPU": 0}
    return SimpleNamespace(NVMLError=Refused, **questions, **constants)


def test_a_gpus_state_in_physical_units() -> None:
    driver = nvml(
        CurrentClocksThrottleReasons=0x4 | 0x20,  # the driver's bits: software power cap, software thermal slowdown
        ClockInfo={1: 1755, 2: 2619},
        Temperature=61,
        PowerUsage=698_500,
        TotalEnergyConsumption=12_345_678,
    )
    assert nvml_state(driver, object()) == DeviceState(
        clock_mhz=1755,
        memory_clock_mhz=2619,
        temperature_c=61,
        power_w=698.5,
        energy_j=12345.678,
        throttle_reasons=("SwPowerCap", "SwThermalSlowdown"),
    )


def test_what_a_gpu_does_not_give_is_none() -> None:
    assert nvml_state(nvml(), object()) == DeviceState()
    assert nvml_state(nvml(CurrentClocksThrottleReasons=0), object()) == DeviceState(throttle_reasons=())


def test_energy_is_a_difference_of_one_counter() -> None:
    assert energy_used(DeviceState(energy_j=100.0), DeviceState(energy_j=130.5)) == 30.5
    assert energy_used(DeviceState(energy_j=100.0), DeviceState(energy_j=3.0)) is None
    assert energy_used(DeviceState(), DeviceState(energy_j=3.0)) is None


def test_states_of_all_ranks_survive_the_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = DeviceState(clock_mhz=1755, energy_j=5.5, throttle_reasons=("GpuIdle", "SwPowerCap"))
    monkeypatch.setattr("bench.devices.read_state", lambda device: mine)

    class TwoRanks:
        def gather(self, values: list[float]) -> list[list[float]]:
            return [values, [float("nan")] * len(values)]

    assert read_states("cuda", TwoRanks()) == (mine, DeviceState())
    monkeypatch.setattr("bench.devices.read_state", lambda device: DeviceState())
    assert read_states("cuda", OneRank()) == ()


def test_this_machines_cpu() -> None:
    state = read_state("cpu")
    assert state.throttle_reasons is None and state.power_w is None
    assert state.clock_mhz is None or 100 < state.clock_mhz < 10_000


@pytest.mark.parametrize("row", [0, 1], ids=["attention", "fast weights"])
def test_operations_of_a_reconstruction_grow_as_they_should(row: int) -> None:
    """Attention's with the square of the number of tokens, in part; fast weights' in proportion."""
    plan = tiny_plan().plan
    cell = plan.cells[plan.rows[row].cells["speed"][0]]
    counts = [_operations(cell.model_copy(update={"input_views": v, "virtual_views": v})) for v in (8, 16, 32)]
    growth = [second - first for first, second in zip(counts, counts[1:], strict=False)]
    if row == 0:
        assert growth[1] > 2.1 * growth[0]
    else:
        assert growth[1] == pytest.approx(2 * growth[0], rel=1e-9)
    smallest = 2 * 8 * cell.resolution[0] * cell.resolution[1] * 12 * int(cell.model["width"])
    assert counts[0] > smallest  # the tokenizer's product alone


def test_operations_of_other_methods_are_unknown() -> None:
    class Other:
        stages = ()

    assert reconstruction_flops(next(iter(tiny_plan().plan.cells.values())), Other()) is None


def test_the_measured_peak_is_one_of_a_processor() -> None:
    plan = tiny_plan().plan
    assert 1e9 < measured_peak(plan.cells[plan.rows[0].cells["speed"][0]]) < 1e14


def _operations(cell: Cell) -> float:
    flops = reconstruction_flops(cell, build_method(cell, None))
    assert flops is not None
    return flops
