"""The OpenVINO benchmark: a row for each model, of the target's own pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxpress.tools.bench.assets import select
from onnxpress.tools.bench.openvino import Row, main, measure


def test_a_row_is_a_line_of_a_table() -> None:
    row = Row("net", 400, (61.75, 61.5), (16.2, 4.9), 3.306, 26, 27)
    assert str(row) == "| net | 400 | 61.75 | 61.50 | 16.20 | 4.90 | 3.31x | 26 of 27 |"


@pytest.mark.assets
def test_a_small_network_is_measured(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    (asset,) = select(["lenet300"], "ptq")
    row = measure(asset, tmp_path, limit=50)
    assert (row.model, row.images) == ("lenet300_mnist", 50)
    assert row.integer == row.products == 3
    assert abs(row.accuracy[0] - row.accuracy[1]) <= 2.0


def test_an_unknown_model_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Exception, match="no asset model starts with 'resnot'"):
        main(["resnot"])
