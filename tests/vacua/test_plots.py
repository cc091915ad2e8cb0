"""The figure: written for every number of moduli, and for no vacua at all."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from matforge.vacua import InputError
from matforge.vacua.plots import plot_file, plot_vacua

pytest.importorskip("matplotlib")


def table(rows, h, seed=0):
    rng = np.random.default_rng(seed)
    lists = pa.list_(pa.float64())
    return pa.table(
        {
            "moduli_re": pa.array(list(rng.uniform(-0.5, 0.5, (rows, h))), type=lists),
            "moduli_im": pa.array(list(rng.uniform(2, 5, (rows, h))), type=lists),
            "tau_re": rng.uniform(-0.5, 0.5, rows),
            "tau_im": rng.uniform(1, 10, rows),
            "n_flux": pa.array(rng.integers(1, 15, rows), type=pa.int32()),
            "W0_abs": rng.gamma(5, 1, rows),
        }
    )


@pytest.mark.parametrize(("rows", "h"), [(30, 1), (1, 2), (6000, 2), (30, 3), (0, 2)])
def test_a_figure_is_written_whatever_the_table_holds(rows, h, tmp_path):
    plot_vacua(table(rows, h), tmp_path / "out.png", "a title with $N \\leq 10$")
    content = (tmp_path / "out.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) > 5000


def test_the_same_vacua_give_the_same_file(tmp_path):
    files = [tmp_path / f"{k}.pdf" for k in "ab"]
    for file in files:
        plot_vacua(table(5, 1), file, "twice")
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_parquet_file_is_drawn_under_its_geometry_s_name(tmp_path):
    path = tmp_path / "vacua.parquet"
    pq.write_table(table(10, 2).replace_schema_metadata({"geometry": "p11169"}), path)
    plot_file(path, tmp_path / "a.svg")
    plot_file(path, tmp_path / "b.svg", title="mine")
    assert "p11169" in (tmp_path / "a.svg").read_text()
    assert "10 vacua modulo sign" in (tmp_path / "a.svg").read_text()
    assert "mine" in (tmp_path / "b.svg").read_text()


def test_an_empty_table_says_so(tmp_path):
    plot_vacua(table(0, 2), tmp_path / "none.svg", "nothing")
    assert "no vacua in this table" in (tmp_path / "none.svg").read_text()


def test_what_cannot_be_drawn_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="the table lacks W0_abs"):
        plot_vacua(table(3, 1).drop_columns(["W0_abs"]), tmp_path / "x.png", "")
    with pytest.raises(InputError, match=r"use \.png, \.pdf or \.svg"):
        plot_vacua(table(3, 1), tmp_path / "x.doc", "")
    with pytest.raises(InputError, match="cannot be read as parquet"):
        plot_file(tmp_path / "missing.parquet", tmp_path / "x.png")
    bad = tmp_path / "bad.parquet"
    bad.write_bytes(b"not parquet")
    with pytest.raises(InputError, match="cannot be read as parquet"):
        plot_file(bad, tmp_path / "x.png")
