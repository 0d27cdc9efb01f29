"""Stage times: the right durations, memory and order, on the CPU."""

from __future__ import annotations

import json
import time

import pytest
import torch

from tttlrm.stages import StageClock, process_peak_rss_bytes


def test_measures_time_and_memory_of_each_stage() -> None:
    clock = StageClock("cpu")
    with clock.stage("sleep"):
        time.sleep(0.05)
    with clock.stage("allocate"):
        torch.ones(64 * 2**20 // 4).sum()
    sleep, allocate = clock.stages
    assert (sleep.name, allocate.name) == ("sleep", "allocate")
    assert 0.05 <= sleep.seconds < 1
    assert sleep.peak_allocated_bytes is None and sleep.peak_reserved_bytes is None
    assert sleep.process_peak_rss_bytes is not None and allocate.process_peak_rss_bytes is not None
    assert 2**25 < sleep.process_peak_rss_bytes <= allocate.process_peak_rss_bytes < 2**37
    assert json.loads(json.dumps(clock.to_list()))[0]["name"] == "sleep"


def test_peak_rss_sees_an_allocation() -> None:
    before = process_peak_rss_bytes()
    assert before is not None
    block = torch.ones(before // 4 + 2**24)
    after = process_peak_rss_bytes()
    assert after is not None and after >= before + 2**26 - 2**20
    assert block.sum() > 0


def test_a_stage_that_raises_is_not_recorded_and_the_clock_goes_on() -> None:
    clock = StageClock("cpu")
    with pytest.raises(RuntimeError), clock.stage("fails"):
        raise RuntimeError
    with clock.stage("works"):
        pass
    assert [stage.name for stage in clock.stages] == ["works"]


def test_stages_do_not_nest() -> None:
    clock = StageClock("cpu")
    with clock.stage("outer"), pytest.raises(AssertionError, match="inner begins inside stage outer"):
        clock.stage("inner").__enter__()
