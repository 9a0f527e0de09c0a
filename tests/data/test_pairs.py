"""Pairs: two datasets side by side, one half of a file by its role, and files that hold no pairs or half of them."""

import h5py
import numpy as np
import pytest
import torch

from scqfaiss.contract import Subset
from scqfaiss.data import open_rows
from scqfaiss.data.pairs import PairSource
from scqfaiss.errors import ConfigError, DataError, ScqWarning
from scqfaiss.training.fingerprint import fingerprint
from scqfaiss.training.rows import SourceRows

Q, K = (np.random.default_rng(seed).standard_normal((90, 5)).astype(np.float16) for seed in (0, 1))
IDS = np.arange(90) // 2 * 3
SEALED = {"fletcher32": True}


def write(path, datasets, sealed=True):
    with h5py.File(path, "w") as f:
        for name, value in datasets.items():
            rows = {"chunks": (16, *np.shape(value)[1:]), **SEALED} if sealed and len(value) else {}
            f.create_dataset(name, data=value, **rows)
    return path


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "p.h5", {"queries": Q, "keys": K, "ids": IDS})


def both(q=Q, k=K):
    return np.concatenate([q, k], axis=1).astype(np.float32)


@pytest.mark.parametrize("role", ["pairs", "any"])
def test_a_row_is_a_query_and_its_key_side_by_side(file, role):
    with open_rows(file, role=role) as source:
        assert (source.pairs, len(source), source.d, source.labels, source.has_ids) == (True, 90, 10, None, True)
        assert source.name == str(file)
        np.testing.assert_array_equal(source.read(0, 90), both())
        np.testing.assert_array_equal(source.read(31, 50), both()[31:50])
        np.testing.assert_array_equal(source.ids, IDS)  # which repeat, and nobody is warned
        np.testing.assert_array_equal(np.concatenate([x for _, x in source.blocks(7)]), both())


@pytest.mark.parametrize("role, rows", [("queries", Q), ("keys", K)])
def test_a_role_takes_one_half_unless_a_dataset_is_named(tmp_path, role, rows):
    ids = np.arange(90) + 7
    path = write(tmp_path / "p.h5", {"queries": Q, "keys": K, "ids": ids, "other": K[:, :2]})
    with open_rows(path, role=role) as source:
        assert (source.pairs, source.d) == (False, 5)
        np.testing.assert_array_equal(source.read(0, 90), rows)
        np.testing.assert_array_equal(source.ids, ids)
    with open_rows(path, role=role, features_key="other") as source:
        assert source.d == 2
    with open_rows(path, role="any", features_key="keys") as source:
        assert (source.pairs, source.d) == (False, 5)


@pytest.mark.parametrize("role", ["queries", "keys", "any", None])
@pytest.mark.parametrize("features_key", ["queries", "keys", "/keys"])
def test_in_either_half_ids_repeat(file, role, features_key):
    with open_rows(file, role=role, features_key=features_key) as source:
        np.testing.assert_array_equal(source.ids, IDS)
        assert (source.is_pair_half, source.duplicate_ids) == (True, True)


def test_ids_of_rows_repeat_where_they_are_queries_or_play_no_part(tmp_path):
    path = write(tmp_path / "x.h5", {"features": K, "ids": IDS})
    for how in ({"role": "queries"}, {"repeated_ids": True}, {"role": "keys", "repeated_ids": True}):
        for allow in (False, True):  # and nobody is warned
            with open_rows(path, **how, allow_duplicate_ids=allow) as source:
                np.testing.assert_array_equal(source.ids, IDS)
                assert (source.is_pair_half, source.duplicate_ids) == (False, False)
    with pytest.raises(
        DataError,
        match=r"x\.h5: ids: 0, 3, 6, 9, 12 stand more than once \(45 such ids\); give every row its own id or",
    ):
        open_rows(path, role="keys")


def test_copies_of_a_key_are_merged(tmp_path, monkeypatch):
    rng = np.random.default_rng(2)
    which = rng.integers(0, 30, 90)
    rows = K[which].copy()
    rows[0, 0] = 0.0
    rows[which == which[0], 0] = 0.0
    rows[np.flatnonzero(which == which[0])[-1], 0] = -0.0
    path = write(tmp_path / "x.h5", {"queries": Q, "keys": rows, "ids": which * 7, "labels": which % 4})
    found, first = np.unique(which, return_index=True)
    for step in (1000, 7):
        with open_rows(path, role="keys") as source:
            monkeypatch.setattr(type(source), "block_rows", step)
            with pytest.warns(ScqWarning, match=rf"x\.h5: merged 90 keys into {len(found)}, one for each id$") as said:
                source.merge_copies()
            kept = np.sort(first)
            np.testing.assert_array_equal(source.ids, which[kept] * 7)
            np.testing.assert_array_equal(source.labels.y, which[kept] % 4)
            np.testing.assert_array_equal(source.read(0, len(source)), rows[kept].astype(np.float32))
            source.merge_copies()
            assert (len(said), source.dropped) == (1, 0)
    with pytest.warns(ScqWarning, match="rows repeat an id"):
        source = open_rows(path, role="keys", allow_duplicate_ids=True)
    with source:
        source.merge_copies()  # as asked for: all stay
        assert len(source) == 90


def test_keys_of_one_id_that_differ_are_refused(tmp_path):
    ids, rows = np.arange(90), K.copy()
    ids[[20, 50, 60]], ids[70] = 4, 5
    rows[[20, 50, 60]] = rows[4]
    rows[60, 1] += 1
    path = write(tmp_path / "x.h5", {"queries": Q, "keys": rows, "ids": ids})
    words = (
        r"x\.h5: keys of id 4 differ \(rows 4 and 60; 2 such ids\); give each its own id or pass --allow-duplicate-ids$"
    )
    with open_rows(path, role="keys") as source, pytest.raises(DataError, match=words):
        source.merge_copies()
    rows[60], rows[0] = rows[4], np.nan  # the file's own row numbers, also behind rows that were left out
    path = write(tmp_path / "y.h5", {"queries": Q, "keys": rows, "ids": ids})
    with pytest.warns(ScqWarning, match="left out 1 of 90"):
        source = open_rows(path, role="keys", skip_bad_rows=True)
    with source, pytest.raises(DataError, match=r"y\.h5: keys of id 5 differ \(rows 5 and 70; 1 such ids\); "):
        source.merge_copies()
    source = open_rows(write(tmp_path / "z.h5", {"queries": Q, "keys": K}), role="keys")
    with source:
        source.merge_copies()  # row numbers never repeat
        assert len(source) == 90


def test_labels_asked_for_with_pairs_are_refused(file):
    with pytest.raises(ConfigError, match=r"p\.h5: --labels-key mine names nothing: pairs have no labels$"):
        open_rows(file, role="pairs", labels_key="mine").close()


def test_what_needs_pairs_is_named(tmp_path):
    path = write(tmp_path / "x.h5", {"features": K})
    words = r"x\.h5 has no dataset 'keys', and method mopq needs pairs, queries and keys; it holds features \(90, 5\) float16;"
    with pytest.raises(DataError, match=words):
        open_rows(path, role="pairs", needed_by="method mopq")
    np.save(tmp_path / "x.npy", K)
    with pytest.raises(ConfigError, match=r"x\.npy holds no pairs, which method mopq needs; needs an HDF5 file of"):
        open_rows(tmp_path / "x.npy", role="pairs", needed_by="method mopq")


def test_without_a_role_pairs_are_refused_and_features_come_first(file, tmp_path):
    with pytest.raises(DataError, match=r"p\.h5 holds pairs, queries and keys, where rows are needed; choose one with"):
        open_rows(file)
    path = write(tmp_path / "all.h5", {"queries": Q, "keys": K, "features": K[:, :3]})
    for role in (None, "keys", "queries", "any"):
        with open_rows(path, role=role) as source:
            assert (source.d, source.pairs) == (3, False)
    with open_rows(path, role="pairs") as source:
        assert source.d == 10


def test_other_names_and_groups(tmp_path):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as f:
        for name, value in (("g/title", Q), ("g/text", K), ("nr", IDS)):
            f.create_dataset(name, data=value, chunks=(16, *value.shape[1:]), **SEALED)
    with open_rows(path, role="pairs", features_key="g/title,g/text", ids_key="nr") as source:
        np.testing.assert_array_equal(source.read(0, 90), both())
        np.testing.assert_array_equal(source.ids, IDS)
    with pytest.raises(ConfigError, match=r"^--features-key is 'g/title', pairs need two datasets: queries,keys$"):
        open_rows(path, role="pairs", features_key="g/title")


def test_one_warning_tells_of_missing_checksums(tmp_path):
    path = write(tmp_path / "bare.h5", {"queries": Q, "keys": K}, sealed=False)
    with (
        pytest.warns(ScqWarning, match=r"bare\.h5: keys has no checksum") as said,
        open_rows(path, role="pairs", verbose=True) as source,
    ):
        np.testing.assert_array_equal(source.ids, np.arange(90))
    assert len(said) == 1


@pytest.mark.parametrize(
    "datasets, error, words",
    [
        ({"queries": Q, "keys": K[:80]}, DataError, r"queries has 90 rows, .*keys has 80; a pair needs one of each$"),
        ({"queries": Q, "keys": K[:, :4]}, ConfigError, r"queries have d=5, .*keys have d=4; pairs need the same$"),
        ({"queries": Q, "keys": K, "ids": IDS[:-1]}, DataError, r"ids is \(89,\) int64, needs \(90,\) int64"),
        ({"queries": Q, "keys": K, "ids": IDS - 1}, DataError, r"ids: row 0 is -1, ids are 0 or larger"),
        ({"queries": Q, "keys": K.astype(int)}, DataError, r"keys is \(90, 5\) int64, needs \(n, d\) float16, float32"),
        ({"queries": Q[:, 0], "keys": K}, DataError, r"queries is \(90,\) float16, needs \(n, d\) float16, float32"),
        (
            {"queries": Q},
            DataError,
            r"has no dataset 'keys'; it holds queries \(90, 5\) float16; choose with --features",
        ),
        (
            {"keys": K},
            DataError,
            r"has no dataset 'queries'; it holds keys \(90, 5\) float16; choose with --features-key$",
        ),
        ({"features": K}, DataError, r"has no dataset 'keys'; it holds features \(90, 5\) float16; choose with"),
    ],
)
def test_files_that_hold_no_pairs_are_refused(tmp_path, datasets, error, words):
    path = write(tmp_path / "x.h5", datasets)
    with pytest.raises(error, match=words):
        open_rows(path, role="pairs")


def test_other_kinds_of_file_hold_no_pairs(tmp_path):
    np.save(tmp_path / "x.npy", K)
    with pytest.raises(ConfigError, match=r"x\.npy holds no pairs; needs an HDF5 file of queries and keys \(\.h5\)$"):
        open_rows(tmp_path / "x.npy", role="pairs")
    for role in ("any", "keys", "queries"):
        with open_rows(tmp_path / "x.npy", role=role) as source:
            assert len(source) == 90


@pytest.mark.parametrize("half, name", [(0, "queries"), (1, "keys")])
def test_a_bad_row_is_named_in_its_own_half_and_can_be_left_out(tmp_path, half, name):
    halves = [Q.copy(), K.copy()]
    halves[half][[7, 50], 2] = np.nan
    path = write(tmp_path / "x.h5", {"queries": halves[0], "keys": halves[1], "ids": IDS})
    message = (
        rf"x\.h5: {name}: row 7, column 2 is NaN \(2 of 90 rows are not finite\); --skip-bad-rows leaves them out$"
    )
    with open_rows(path, role="pairs") as source, pytest.raises(DataError, match=message):
        source.read(0, 90)
    with pytest.warns(ScqWarning, match=r"left out 2 of 90 rows"):
        source = open_rows(path, role="pairs", skip_bad_rows=True)
    with source:
        kept = np.delete(np.arange(90), [7, 50])
        assert (len(source), source.dropped) == (88, 2)
        np.testing.assert_array_equal(source.read(0, 88), both()[kept])
        np.testing.assert_array_equal(source.ids, IDS[kept])


def test_damage_and_replacement_are_seen_in_either_half(tmp_path, file):
    raw = bytearray(file.read_bytes())
    at = raw.index(Q[20].tobytes())
    raw[at] ^= 1
    (tmp_path / "bent.h5").write_bytes(raw)
    with open_rows(tmp_path / "bent.h5", role="pairs") as source:
        with pytest.raises(DataError, match=r"bent\.h5: queries: rows 16 to 31 are damaged; restore a copy$"):
            source.read(0, 90)
    source = open_rows(file, role="pairs")
    file.rename(tmp_path / "away.h5")
    with pytest.raises(DataError, match=r"was removed while it was read$"):
        source.close()


def test_blocks_hold_whole_chunks_of_both(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as f:
        for name, rows in (("queries", 300), ("keys", 200)):
            f.create_dataset(name, data=np.zeros((3000, 2048), "f2"), chunks=(rows, 2048), fletcher32=True)
    with open_rows(tmp_path / "x.h5", role="pairs") as source:
        assert (source.chunk_rows, source.block_rows) == (600, 600)  # 16 MiB as float32 would be 1,024 rows


def test_arrays_make_the_same_pairs():
    source = PairSource.of_arrays(Q, K, IDS)
    np.testing.assert_array_equal(source.read(3, 60), both()[3:60])
    np.testing.assert_array_equal(source.ids, IDS)
    np.testing.assert_array_equal(PairSource.of_arrays(Q, K).ids, np.arange(90))
    for q, k, words in [
        (Q, K[:1], r"^x: queries has 90 rows, keys: keys has 1; a pair needs one of each$"),
        (Q, K[:, :1], r"^x: queries have d=5, keys: keys have d=1; pairs need the same$"),
        (Q, np.full_like(K, np.inf), r"^keys: row 0, column 0 is infinite"),
        (Q[0], K, r"^x is \(5,\) float16, needs"),
    ]:
        with pytest.raises((DataError, ConfigError), match=words):
            PairSource.of_arrays(q, k)


@pytest.mark.parametrize("memory", [None, 0])
def test_training_sees_whole_pairs_streamed_or_not(file, memory):
    with open_rows(file, role="pairs") as source:
        rows = SourceRows(source, "cpu", memory)
        seen = []
        for x, index in rows.batches(20, torch.Generator().manual_seed(0)):
            np.testing.assert_array_equal(x.numpy(), both()[index.numpy()])
            seen += index.tolist()
        assert sorted(seen) == list(range(90))
        assert fingerprint(Subset(rows, None, source.ids)) != fingerprint(Subset(rows, None, source.ids + 1))
