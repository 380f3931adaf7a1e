"""Blocks of a table: small archives are shared evenly by a few processes."""

import pytest

from darklens.predict.table import Blocks, _fit_block_size


@pytest.mark.parametrize(
    ("n_files", "sizes"),
    [(1, [1]), (16, [16]), (17, [16, 1]), (60, [16, 16, 16, 12]), (100, [25] * 4), (250, [48] * 5 + [10])],
)
def test_blocks_of_files_that_are_fitted(n_files, sizes):
    files = [str(k) for k in range(n_files)]
    blocks = Blocks(files, _fit_block_size(n_files))
    assert [len(blocks[n]) for n in range(len(blocks))] == sizes
    assert [file for n in range(len(blocks)) for file in blocks[n]] == files
