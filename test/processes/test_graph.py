# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A ROS graph to be alone in."""

from stream_vlm_ros.processes.graph import claim_domain


def test_the_domain_that_is_asked_for_is_claimed_wherever_it_is_free():
    claim, free = claim_domain()
    with claim:
        other, another = claim_domain(free)
        with other:
            assert another != free
    again, same = claim_domain(free)
    with again:
        assert same == free
