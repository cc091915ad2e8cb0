"""How long a job may take where a policy says so."""

from __future__ import annotations

from typing import Any

import pytest

from matforge.executors.walltime import YEAR_S, longest_duration


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, 0.0),
        ({"policy": {"limits": {"job-size": {"max": {"nnodes": 2}}}}}, 0.0),
        ({"policy": {"limits": {"duration": "0"}}}, 0.0),
        ({"policy": {"limits": {"duration": "60"}}}, 60.0),
        ({"policy": {"jobspec": {"defaults": {"system": {"duration": "5"}}}}}, YEAR_S),
        (
            {
                "policy": {
                    "jobspec": {"defaults": {"system": {"duration": "5", "queue": "batch"}}},
                    "limits": {"duration": "60"},
                },
                "queues": {"batch": {"policy": {"limits": {"duration": "90"}}}, "debug": {}},
            },
            90.0,
        ),
        (
            {
                "policy": {"jobspec": {"defaults": {"system": {"queue": "night"}}}},
                "queues": {"night": {"parent": "batch"}, "batch": {"policy": {"limits": {"duration": "30"}}}},
            },
            30.0,
        ),
    ],
)
def test_a_job_asks_for_the_most_that_its_queue_allows(config: dict[str, Any], expected: float) -> None:
    assert longest_duration(config, float) == expected
