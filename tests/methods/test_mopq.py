"""MoPQ: its loss against a slow twin, the straight-through choice, several processes, the start, and what it refuses."""

import os

import faiss
import numpy as np
import pytest
import torch
from close import assert_as_good
from processes import in_two

import scqfaiss
from scqfaiss import distributed
from scqfaiss.contract import Subset, Task, configure
from scqfaiss.data.pairs import PairSource
from scqfaiss.encoders import encoder_class
from scqfaiss.errors import ConfigError, DataError, ScqWarning
from scqfaiss.methods import mopq
from scqfaiss.methods.mopq import MoPQ, Settings, known_answers, matching_loss, straight_through
from scqfaiss.training.rows import SourceRows, statistics

PRECISIONS = pytest.mark.parametrize("dtype, rtol", [(torch.float64, 1e-10), (torch.float32, 2e-5)])
pytestmark = pytest.mark.filterwarnings("ignore:.*can use at most:scqfaiss.errors.ScqWarning")


def pairs(n=60, d=8, seed=0, noise=0.5):
    """Queries and keys (n, d) float32: a query is its key, seen through a fixed map and noise."""
    rng = np.random.default_rng(seed)
    keys = rng.standard_normal((n, d)) @ rng.standard_normal((d, d))
    return (keys + noise * rng.standard_normal((n, d))).astype(np.float32), keys.astype(np.float32)


def build(q=None, k=None, ids=None, M=2, nbits=3, encoder="linear", begin=True, dtype=torch.float32, **settings):
    """A MoPQ on pairs, begun; the encoder without dropout."""
    if q is None:
        q, k = pairs()
    source = PairSource.of_arrays(q, k, ids)
    rows = SourceRows(source, "cpu")
    cls = encoder_class(encoder)
    made = cls(cls.Config(**({} if encoder == "identity" else {"input_dropout": 0.0})), statistics(rows, q.shape[1]))
    batch, held = settings.pop("batch_size", None), settings.pop("validation", None)
    held = None if held is None else Subset(SourceRows(held, "cpu"), None, held.ids)
    task = Task(rows, None, M, nbits, 0, made, encoder, validation=held, ids=source.ids, batch_size=batch)
    method = MoPQ(configure(Settings, settings), task)
    if begin:
        method.begin()
    return method.to(dtype)


def batch_of(method, index):
    """Pairs (b, 2 d_in) of the rows `index`, in the method's precision."""
    return method.task.rows.x[torch.as_tensor(index)].to(method.centroids.dtype), torch.as_tensor(index)


# ---------------------------------------------------------------------------------------------------------- slow twins
def slow_codes(z, w):
    M, K, dsub = w.shape
    codes = [
        [int(np.argmin([((row[m * dsub : (m + 1) * dsub] - w[m, j]) ** 2).sum() for j in range(K)])) for m in range(M)]
        for row in z
    ]
    return np.array(codes), np.array([np.concatenate([w[m, c] for m, c in enumerate(row)]) for row in codes])


def slow_mcl(q, keys, ids, scale):
    total = 0.0
    for i, query in enumerate(q):
        others = [j for j in range(len(keys)) if j == i or ids[j] != ids[i]]
        total -= scale * (query @ keys[i]) - np.log(sum(np.exp(scale * (query @ keys[j])) for j in others))
    return total / len(q)


def slow_z(method, x):
    """x (n, d_in) -> z, from the parameters as they stand."""
    encoder = method.encoder
    g = x * encoder.scale.double().numpy() + encoder.shift.double().numpy() if method.mapped else x
    g = (g - method.mean.double().numpy()) * float(method.gain)
    if not method.mapped:
        return g
    return g @ method.map.detach().double().numpy().T + method.shift.detach().double().numpy()


@PRECISIONS
@pytest.mark.parametrize("encoder", ["linear", "identity"])
@pytest.mark.parametrize("scale, dense, rebuild", [(20.0, 1.0, 0.3), (0.0, 1.0, 1e-8), (3.0, 0.0, 0.0)])
def test_loss_equals_slow_twin(dtype, rtol, encoder, scale, dense, rebuild):
    ids = np.arange(60) // 2  # every key answers two queries
    q, k = pairs()
    method = build(q, k, ids, encoder=encoder, dtype=dtype, scale=scale, dense=dense, rebuild=rebuild)
    index = [0, 5, 1, 30, 44, 45, 7]
    terms = method.loss(*batch_of(method, index))
    zq, zk = slow_z(method, q[index].astype(np.float64)), slow_z(method, k[index].astype(np.float64))
    _, found = slow_codes(zk, method.centroids.detach().double().numpy())
    want = {"quantized": slow_mcl(zq, found, ids[index], scale or 1.0)}
    if dense:
        want["dense"] = dense * slow_mcl(zq, zk, ids[index], scale or 1.0)
    if rebuild:
        want["rebuild"] = rebuild * ((zk - found) ** 2).sum(1).mean()
    assert terms.keys() == want.keys()
    for name, value in want.items():
        np.testing.assert_allclose(terms[name].item(), value, rtol=rtol, atol=rtol)


# ----------------------------------------------------------------------------------------------------- straight through
def codebooks(M=2, K=5, dsub=3, n=7, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, M * dsub, generator=generator, dtype=dtype)
    return z.requires_grad_(), torch.randn(M, K, dsub, generator=generator, dtype=dtype).requires_grad_()


@pytest.mark.parametrize("sharpness", [1.0, 30.0])
def test_the_value_is_the_chosen_codeword_to_the_last_bit(sharpness):
    z, w = codebooks(dtype=torch.float32)
    found, codes = straight_through(z, w, sharpness)
    want, chosen = slow_codes(z.detach().numpy(), w.detach().numpy())
    np.testing.assert_array_equal(codes.numpy(), want)
    np.testing.assert_array_equal(found.detach().numpy(), chosen)


@pytest.mark.parametrize("sharpness", [0.5, 4.0])
def test_the_gradient_is_that_of_the_stated_surrogate(sharpness):
    """one-hot + p - sg[p]: only p moves, around the choice and the p of this point."""
    z, w = codebooks()
    weight = torch.randn(len(z), z.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(1)).numpy()
    (straight_through(z, w, sharpness)[0] * torch.from_numpy(weight)).sum().backward()
    z0, w0 = z.detach().numpy(), w.detach().numpy()
    M, K, dsub = w0.shape

    def soft(z, w):
        parts = z.reshape(len(z), M, 1, dsub)
        e = np.exp(-sharpness * ((parts - w) ** 2).sum(3))
        return e / e.sum(2, keepdims=True)  # n m k

    multi_hot, p0 = np.eye(K)[slow_codes(z0, w0)[0]], soft(z0, w0)

    def surrogate(z, w):
        return (np.einsum("nmk,mke->nme", multi_hot + soft(z, w) - p0, w).reshape(len(z), -1) * weight).sum()

    for at, grad in ((z0, z.grad.numpy()), (w0, w.grad.numpy())):
        for place in np.ndindex(at.shape):
            values = []
            for step in (1e-6, -1e-6):
                moved = at.copy()
                moved[place] += step
                values.append(surrogate(moved, w0) if at is z0 else surrogate(z0, moved))
            np.testing.assert_allclose(grad[place], (values[0] - values[1]) / 2e-6, rtol=1e-6, atol=1e-7)


# ------------------------------------------------------------------------------------------------- masks and processes
def test_a_pair_repeated_under_its_key_id_changes_no_loss():
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(5, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    ids = torch.tensor([3, 9, 4, 11, 7])

    def loss_of_first(q, k, ids):
        target, masked = known_answers(ids[:1], ids)
        return matching_loss(q[:1], k, target, masked, 2.0).item()

    alone = loss_of_first(q, k, ids)
    again = torch.cat([k, k[:1], k[:1]]), torch.cat([ids, ids[:1], ids[:1]])
    assert loss_of_first(q, *again) == pytest.approx(alone, rel=1e-12)
    other = torch.cat([k, k[:1]]), torch.cat([ids, torch.tensor([100])])  # the same key under another id is a negative
    assert loss_of_first(q, *other) > alone


def test_a_batch_of_one_key_alone_has_nothing_to_learn():
    q, k = pairs(6)
    method = build(q, k, np.array([1, 1, 1, 1, 2, 2]))
    terms = method.loss(*batch_of(method, [0, 1, 2]))
    assert terms["dense"].item() == terms["quantized"].item() == 0
    sum(terms.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in method.parameters())


IDS = np.array([4, 4, 1, 2, 5, 4, 7, 7])


def of_eight():
    return build(*pairs(8), IDS, rebuild=0.1)


def gradients(method):
    return [p.grad.numpy() for _, p in sorted(method.named_parameters())]


def half_of_eight(rank, meeting, out):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    method = of_eight()
    sum(method.loss(*distributed.shard(batch_of(method, range(8)))).values()).backward()
    distributed.average_gradients([p for _, p in sorted(method.named_parameters())])
    np.savez(f"{out}.{rank}.npz", *gradients(method))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_of_four_pairs_have_the_gradient_of_one_with_eight(tmp_path):
    in_two(half_of_eight, str(tmp_path / "meet"), str(tmp_path / "g"))
    method = of_eight()
    sum(method.loss(*batch_of(method, range(8))).values()).backward()
    want = gradients(method)
    assert max(np.abs(g).max() for g in want) > 1e-3
    for rank in range(2):
        with np.load(tmp_path / f"g.{rank}.npz") as found:
            for name, g in zip(found.files, want, strict=True):
                np.testing.assert_allclose(found[name], g, atol=1e-5)


# --------------------------------------------------------------------------------------------------------------- start
def test_the_start_is_on_principal_axes_of_keys_and_of_length_one():
    q, k = pairs(500, 8)
    method = build(q, k, M=2, nbits=4, d=4, whitening=0.4)
    with torch.no_grad():
        z = method(torch.from_numpy(k)).double().numpy()
    np.testing.assert_allclose((z**2).sum(1).mean(), 1, rtol=1e-5)
    # Rotated as they are, the axes' second moments are those of the largest four, each to the power 1 - whitening.
    g = (k - (q.mean(0) + k.mean(0)) / 2) / np.concatenate([q, k]).std(0)
    axes = np.linalg.eigvalsh(g.T.astype(np.float64) @ g)[-4:] ** 0.6
    np.testing.assert_allclose(np.linalg.eigvalsh(z.T @ z / len(z)), axes / axes.sum(), rtol=2e-3)
    _, found = slow_codes(z, method.centroids.detach().double().numpy())
    np.testing.assert_allclose(float(method.error), ((z - found) ** 2).sum(1).mean() / 2, rtol=1e-4)


def test_beginning_twice_is_the_same_and_the_released_start_is_uniform():
    method = build()
    before = {name: t.clone() for name, t in method.state_dict().items()}
    torch.rand(3)
    method.begin()
    for name, t in method.state_dict().items():
        assert torch.equal(t, before[name]), name
    released = build(nbits=8, recipe="reference", **{k: v for k, v in mopq.REFERENCE.items() if k != "training.epochs"})
    w = released.centroids.detach().numpy()
    assert -1 <= w.min() < -0.98 < 0.98 < w.max() <= 1
    assert (float(released.gain), float(released.error), released.sharpness) == (1, 1, 1.0)


def test_more_codebooks_than_dimensions_to_fill_them():
    """z of more dimensions than the rows: their axes are turned into a larger space."""
    q, k = pairs(100, 4)
    model = scqfaiss.train(q, keys=k, method="mopq", bits=24, nbits=4, epochs=1, d=18)
    assert (model.codebooks.d, model.encode(k).shape) == (18, (100, 6))


# ------------------------------------------------------------------------------------------------------------ training
def recall(model, q, k, at):
    s = model.codebooks.scores(model.embed(q), model.encode(k))
    own = s[np.arange(len(q)), np.arange(len(q))][:, None]
    return float(((s > own).sum(1) < at).mean())


@pytest.mark.slow
def test_training_finds_more_keys_than_it_started_with():
    q, k = pairs(900, 16, noise=1.5)
    settings = {"method": "mopq", "bits": 16, "nbits": 4, "batch_size": 100, "input_dropout": 0.0}
    found = [recall(scqfaiss.train(q, keys=k, epochs=epochs, **settings), q, k, 10) for epochs in (0, 20)]
    assert found[1] > found[0] + 0.05


@pytest.mark.parametrize("encoder", ["linear", "identity", "mlp"])
def test_codes_are_those_of_faiss(encoder):
    q, k = pairs(300, 8)
    hidden = {"hidden": 16} if encoder == "mlp" else {}
    model = scqfaiss.train(q, keys=k, method="mopq", bits=16, nbits=8, encoder=encoder, epochs=1, **hidden)
    codebooks, z = model.codebooks, model.embed(k)
    assert model.chain.foldable == (encoder != "mlp")
    if encoder == "identity":
        np.testing.assert_array_equal(z, k)
    index = faiss.IndexPQ(codebooks.d, codebooks.M, codebooks.nbits, faiss.METRIC_INNER_PRODUCT)
    faiss.copy_array_to_vector(codebooks.centroids.ravel(), index.pq.centroids)
    index.is_trained = True
    assert_as_good(model.encode(k), index.pq.compute_codes(z), codebooks, z)
    assert model.config["encoder"] == encoder


def test_codebooks_of_plain_rows_are_on_the_scale_of_the_rows():
    q, k = pairs(300, 8)
    small, large = (
        scqfaiss.train(c * q, keys=c * k, method="mopq", bits=8, nbits=4, encoder="identity", epochs=3)
        for c in (1.0, 256.0)
    )
    np.testing.assert_allclose(large.codebooks.centroids, 256 * small.codebooks.centroids, rtol=1e-3, atol=0.05)


def test_dead_codewords_are_revived_unless_told_not_to():
    for revive in (True, False):
        method = build(*pairs(200), nbits=4, revive=revive)
        method.make_optimizer(10)
        with torch.no_grad():
            method.centroids[:, 3] = 1e3
        found = method.after_epoch(0)
        assert found["codewords_used"] == [15, 15]
        assert found["revived"] == (2 if revive else 0)
        assert (method.centroids.abs().max() < 100) == revive


def test_validation_is_the_loss_of_quantized_keys_among_all():
    q, k = pairs(40, seed=5)
    ids = np.arange(40) // 2
    held = PairSource.of_arrays(q, k, ids)
    method = build(scale=2.0, validation=held)
    zq, zk = slow_z(method, q.astype(np.float64)), slow_z(method, k.astype(np.float64))
    _, found = slow_codes(zk, method.centroids.detach().double().numpy())
    np.testing.assert_allclose(method.validate(), slow_mcl(zq, found, ids, 2.0), rtol=1e-4)


def test_validation_keeps_the_best_epoch_and_codebook_rows_start_the_codebooks(tmp_path):
    q, k = pairs(200)
    metrics = tmp_path / "m.jsonl"
    more = {"method": "mopq", "bits": 8, "nbits": 4, "epochs": 3, "seed": 1}
    a = scqfaiss.train(q, keys=k, validation=pairs(50, seed=3), metrics=metrics, **more)
    assert metrics.read_text().count('"validation"') == 3
    b = scqfaiss.train(q, keys=k, codebook_rows=pairs(300, seed=4)[1], **more)
    assert not np.array_equal(a.codebooks.centroids, b.codebooks.centroids)
    with pytest.raises(ConfigError, match=r"^codebook_rows: rows have d=7, x has d=8$|^codebook_rows: .* has d=8$"):
        scqfaiss.train(q, keys=k, codebook_rows=k[:, :7], **more)


def test_resumed_training_comes_to_the_same_bytes(tmp_path):
    q, k = pairs(200)
    more = {"method": "mopq", "bits": 8, "nbits": 4, "epochs": 4, "batch_size": 50}
    whole = scqfaiss.train(q, keys=k, **more).to_bytes()
    folder = tmp_path / "checkpoints"
    stops = iter(range(100))

    def stop(what, done, total, detail):
        if what == "pairs" and next(stops) == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scqfaiss.train(q, keys=k, checkpoints=folder, checkpoint_every=3, progress=stop, **more)
    assert os.listdir(folder)
    assert scqfaiss.train(q, keys=k, checkpoints=folder, resume=True, **more).to_bytes() == whole


# ------------------------------------------------------------------------------------------------------------- refused
@pytest.mark.parametrize(
    "error, words, n, ids, settings",
    [
        (ConfigError, r"^1 pair holds no wrong key to tell the right one from; need 2 or more$", 1, None, {}),
        (ConfigError, r"^batches of 1 pair hold no wrong key to tell the right one", 9, None, {"batch_size": 1}),
        (DataError, r"^all 9 pairs have the key id 5: there is no other key to tell it from$", 9, np.full(9, 5), {}),
        (ConfigError, r"^d=5 is not divisible by M=2 codebooks; need M of 1 or 5$", 9, None, {"d": 5}),
        (ConfigError, r"^d is 4, but without a map \(--encoder identity\) z are the rows, d=8$", 9, None, {"d": 4}),
        (ConfigError, r"^scale is -1.0, needs 0 to", 9, None, {"scale": -1}),
        (ConfigError, r"^recipe is 'referense', needs one of tuned, reference; did you mean 'reference'", 9, None, 0),
    ],
)
def test_what_cannot_be_trained_is_refused(error, words, n, ids, settings):
    settings = {"recipe": "referense"} if settings == 0 else settings
    encoder = "identity" if settings.get("d") == 4 else "linear"
    with pytest.raises(error, match=words):
        scqfaiss.train(
            *pairs(n)[:1], keys=pairs(n)[1], ids=ids, method="mopq", bits=8, nbits=4, encoder=encoder, **settings
        )


def test_pairs_and_rows_are_not_taken_for_one_another():
    q, k = pairs()
    with pytest.raises(
        DataError, match=r"^x holds no pairs, which method mopq needs: give queries as x, and what .* keys$"
    ):
        scqfaiss.train(q, method="mopq", bits=8, nbits=4)
    for method in ("pq", "scq"):  # one that needs labels, too, is first of all a method on rows
        words = rf"^x and keys are pairs, method {method} takes rows; give the rows to code as x, without keys$"
        with pytest.raises(DataError, match=words):
            scqfaiss.train(q, keys=k, method=method, bits=8, nbits=4)
    with pytest.raises(ConfigError, match=r"^y and keys were given"):
        scqfaiss.train(q, np.zeros(60, int), keys=k, method="mopq", bits=8, nbits=4)
    with pytest.raises(ConfigError, match=r"^validation of pairs needs \(queries, keys\)"):
        scqfaiss.train(q, keys=k, validation=q, method="mopq", bits=8, nbits=4)


@pytest.mark.parametrize("n, ids", [(1, None), (5, np.full(5, 7))])
def test_validation_pairs_of_one_key_are_refused_before_training(n, ids):
    words = (
        rf"^all {n} validation pairs have the key id {7 if n > 1 else 0}: there is no other key to tell it from, and"
    )
    held = (*pairs(n, seed=1), *([] if ids is None else [ids]))
    q, k = pairs()
    with pytest.raises(DataError, match=words):
        scqfaiss.train(q, keys=k, validation=held, method="mopq", bits=8, nbits=4, epochs=1)
    with pytest.raises(DataError, match=words):
        build(begin=False, validation=PairSource.of_arrays(*held))
    assert np.isfinite(build(validation=PairSource.of_arrays(*pairs(2, seed=1))).validate())


def test_few_pairs_train_and_say_so():
    with pytest.warns(ScqWarning, match=r"^3 pairs can use at most 3 of 16 codewords$"):
        model = scqfaiss.train(pairs(3)[0], keys=pairs(3)[1], method="mopq", bits=8, nbits=4, epochs=2)
    assert np.isfinite(model.codebooks.centroids).all()


@pytest.mark.filterwarnings("ignore:codebook . uses 1 of 16:scqfaiss.errors.ScqWarning")
def test_equal_keys_train_without_harm():
    q, k = pairs(40)
    model = scqfaiss.train(q, keys=np.zeros_like(k), method="mopq", bits=8, nbits=4, epochs=1, encoder="identity")
    assert np.isfinite(model.codebooks.centroids).all()
    model = scqfaiss.train(q, keys=np.ones_like(k), method="mopq", bits=8, nbits=4, epochs=1)
    assert np.isfinite(model.codebooks.centroids).all()
