"""The state of a rank's device at one moment (clocks, temperature, power, energy), and the GPUs of this machine.

From the NVIDIA driver through nvidia-ml-py, from Linux for a CPU. What a device does not give is None, never guessed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from bench.schema import Frozen

_REASONS = "nvmlClocksThrottleReason"
_RAPL = Path("/sys/class/powercap")


class Gpu(Frozen):
    name: str
    memory_mib: int
    driver: str | None = None
    power_limit_w: float | None = None


class DeviceState(Frozen):
    """Of one rank's device at one moment.

    clock_mhz: of the multiprocessors, or the mean of the CPU's cores. energy_j: a counter whose start means nothing and
    whose differences do. throttle_reasons: the driver's names for what held the clocks down (``GpuIdle`` among them).
    """

    clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    energy_j: float | None = None
    throttle_reasons: tuple[str, ...] | None = None


class Gatherer(Protocol):
    """The part of :class:`bench.timing.Ranks` that is needed here."""

    def gather(self, values: list[float]) -> list[list[float]]: ...


def read_states(device: str, ranks: Gatherer) -> tuple[DeviceState, ...]:
    """Every rank's device now, by rank; each rank calls this. Empty where no rank's device gives anything."""
    by_rank = ranks.gather(_pack(read_state(device)))
    states = tuple(_unpack(values) for values in by_rank)
    return () if all(state == DeviceState() for state in states) else states


def read_state(device: str) -> DeviceState:
    """This process's device now: ``cpu``, or the current CUDA device."""
    return _gpu_state() if device == "cuda" else _cpu_state()


def energy_used(before: DeviceState, after: DeviceState) -> float | None:
    """Joules between two states of one device; None if it counts none, or its counter began anew in between."""
    if before.energy_j is None or after.energy_j is None or after.energy_j < before.energy_j:
        return None
    return after.energy_j - before.energy_j


def list_gpus() -> list[Gpu]:
    """The GPUs that PyTorch sees, in its order."""
    import torch

    driver, limits = _driver_facts()
    gpus = []
    for at in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(at)
        limit = limits[at] if at < len(limits) else None
        gpus.append(Gpu(name=facts.name, memory_mib=facts.total_memory // 2**20, driver=driver, power_limit_w=limit))
    return gpus


def _gpu_state() -> DeviceState:
    import torch

    def read(nvml: Any) -> DeviceState:
        return nvml_state(nvml, _handle(nvml, torch.cuda.current_device()))

    return _with_nvml(read) or DeviceState()


def nvml_state(nvml: Any, handle: Any) -> DeviceState:
    """What the driver says of one GPU; each value that this GPU does not give is None."""

    def ask(question: Callable[..., Any], *arguments: Any, scale: float = 1.0) -> float | None:
        try:
            return float(question(handle, *arguments)) * scale
        except nvml.NVMLError:
            return None

    bits = ask(nvml.nvmlDeviceGetCurrentClocksThrottleReasons)
    return DeviceState(
        clock_mhz=ask(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_SM),
        memory_clock_mhz=ask(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_MEM),
        temperature_c=ask(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU),
        power_w=ask(nvml.nvmlDeviceGetPowerUsage, scale=1e-3),
        energy_j=ask(nvml.nvmlDeviceGetTotalEnergyConsumption, scale=1e-3),
        throttle_reasons=None if bits is None else _reason_names(int(bits)),
    )


def _reason_bits() -> dict[str, int]:
    """Name -> bit, of the driver's reasons; empty without nvidia-ml-py."""
    try:
        import pynvml
    except ImportError:
        return {}
    named = {name.removeprefix(_REASONS): bit for name, bit in vars(pynvml).items() if name.startswith(_REASONS)}
    return {name: bit for name, bit in named.items() if isinstance(bit, int) and bit and name != "All"}


def _reason_names(bits: int) -> tuple[str, ...]:
    return tuple(sorted(name for name, bit in _reason_bits().items() if bits & bit))


def _cpu_state() -> DeviceState:
    clocks = [float(line.split(":")[1]) for line in _lines(Path("/proc/cpuinfo")) if line.startswith("cpu MHz")]
    counters = [_number(path) for path in sorted(_RAPL.glob("intel-rapl:?/energy_uj"))]  # one a socket; often root's
    known = [value for value in counters if value is not None]
    return DeviceState(
        clock_mhz=round(sum(clocks) / len(clocks), 1) if clocks else None,
        energy_j=sum(known) / 1e6 if known and len(known) == len(counters) else None,
    )


def _pack(state: DeviceState) -> list[float]:
    """As numbers, which is what ranks exchange; NaN for None, reasons as the driver's bits."""
    bits = _reason_bits()
    reasons = None if state.throttle_reasons is None else sum(bits[name] for name in state.throttle_reasons)
    values = (state.clock_mhz, state.memory_clock_mhz, state.temperature_c, state.power_w, state.energy_j, reasons)
    return [math.nan if value is None else float(value) for value in values]


def _unpack(values: list[float]) -> DeviceState:
    clock, memory, temperature, power, energy, reasons = (None if math.isnan(value) else value for value in values)
    return DeviceState(
        clock_mhz=clock,
        memory_clock_mhz=memory,
        temperature_c=temperature,
        power_w=power,
        energy_j=energy,
        throttle_reasons=None if reasons is None else _reason_names(int(reasons)),
    )


def _with_nvml(read: Callable[[Any], Any]) -> Any:
    """What ``read`` gives; None without nvidia-ml-py, a driver or a device."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # the package raises its own errors, and OSError where there is no library
        return None
    try:
        return read(pynvml)
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()


def _driver_facts() -> tuple[str | None, list[float]]:
    """Version of the driver, and the power limit of each GPU in watts."""
    import torch

    def read(nvml: Any) -> tuple[str, list[float]]:
        handles = [_handle(nvml, at) for at in range(torch.cuda.device_count())]
        limits = [nvml.nvmlDeviceGetPowerManagementLimit(handle) / 1000 for handle in handles]
        return str(nvml.nvmlSystemGetDriverVersion()), limits

    return _with_nvml(read) or (None, [])


def _handle(nvml: Any, at: int) -> Any:
    """Of a GPU by its number in PyTorch: found by UUID, because NVML ignores CUDA_VISIBLE_DEVICES."""
    import torch

    return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(at).uuid}")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _number(path: Path) -> float | None:
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return None
