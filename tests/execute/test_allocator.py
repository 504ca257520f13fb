"""Large blocks that are freed and allocated again cost no page faults."""

import resource
import sys

import pytest
import torch

from popgraft.execute.allocator import keep_freed_memory


@pytest.mark.skipif(sys.platform != "linux", reason="the allocator is glibc's")
def test_a_freed_block_is_found_again_without_page_faults():
    assert keep_freed_memory()

    def faults(times):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(times):
            torch.ones(4_000_000)  # 16 MB: 3,900 pages
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults(2)  # the first blocks are new
    assert faults(10) < 10 * 3_900 / 2
