"""PHPQ: its loss against a slow twin, attention in part, the start of the codebooks, resuming, several processes, refusals."""

import dataclasses
import sys

import numpy as np
import pytest
import torch
import torch.multiprocessing as multiprocessing
from images import Drawn
from torch import nn

import scqfaiss
from scqfaiss import distributed
from scqfaiss.arrays import as_labels
from scqfaiss.contract import Subset, Task, configure
from scqfaiss.contract import settings as settings_of
from scqfaiss.encoders import backbone
from scqfaiss.encoders.backbone import Backbone
from scqfaiss.encoders.chain import Chain
from scqfaiss.errors import ConfigError, DataError
from scqfaiss.methods import phpq
from scqfaiss.methods.phpq import PHPQ, Settings
from scqfaiss.modality import IMAGES
from scqfaiss.training.checkpoints import Checkpoints
from scqfaiss.training.engine import Engine
from scqfaiss.training.rows import ImageRows

PRECISIONS = pytest.mark.parametrize("dtype, rtol", [(torch.float64, 1e-10), (torch.float32, 2e-5)])
SIDE, C = 8, 4


def drawn(n=64, seed=0):
    """x (n, 3, 8, 8) uint8 of 4 classes, told apart by where they are bright and by colour; y (n,)."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % C
    x = rng.integers(0, 90, (n, 3, SIDE, SIDE))
    for i, k in enumerate(y):
        x[i, k % 3, 4 * (k // 2) :][:4] += 120
    return x.astype(np.uint8), y


def backbone_of(stages=2, norm=False, **settings):
    """A small network of convolutions, always of the same weights, that pools its last `stages` maps."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU()]
    if norm:
        layers[1] = nn.Sequential(nn.BatchNorm2d(6), nn.ReLU())
    net = nn.Sequential(*layers)
    net.input_size, net.feature_layers = SIDE, ("1", "3")[-stages:]
    values = {"pool": "hybrid", "dropout": 0.0, "augment": "light", "backbone_lr": 1.0, **settings}
    return Backbone(configure(backbone.Settings, values), net, "toy:net", {})


def build(x=None, y=None, M=2, nbits=3, begin=True, validation=None, epochs=3, batch_size=16, network=None, **settings):
    """A PHPQ on images, begun."""
    x, y = (drawn() if x is None else (x, y)) if y is None else (x, y)
    encoder = network or backbone_of()
    config = configure(Settings, {"d": 4 * M, "top": 3, "vectors": "learned", **settings})

    def part(x, y):
        return Subset(ImageRows(Drawn(x), encoder.width, "cpu", 1 << 20), as_labels(y, len(x), "y"))

    rows = part(x, y)
    method = PHPQ(
        config,
        Task(
            rows=rows.rows,
            labels=rows.labels,
            M=M,
            nbits=nbits,
            encoder=encoder,
            encoder_name="toy:net",
            validation=None if validation is None else part(*validation),
            epochs=epochs,
            batch_size=batch_size,
        ),
    )
    if begin:
        method.begin()
    return method


def many_labels(y, seed=1):
    multi_hot = (np.random.default_rng(seed).random((len(y), C)) < 0.3).astype(np.uint8)
    multi_hot[np.arange(len(y)), y] = 1
    return multi_hot


# ---------------------------------------------------------------------------------------------------------- slow twins
def cosine(a, b):
    return a @ b / (np.sqrt(a @ a) * np.sqrt(b @ b))


def slow_rebuilds(z, w, top, beta, v):
    """Soft and hard rebuilds of one row z (d,), by sorting the codewords of every codebook."""
    soft, hard, dsub = [], [], w.shape[2]
    for m, codebook in enumerate(w):
        part = z[m * dsub : (m + 1) * dsub]
        dist = np.array([((part - word) ** 2).sum() for word in codebook])
        near = sorted(range(len(codebook)), key=lambda k: dist[k])[:top]
        e = np.exp(-beta * (dist[near] - dist.min()) / v[m])
        soft.append((e / e.sum()) @ codebook[near])
        hard.append(codebook[near[0]])
    return np.concatenate(soft), np.concatenate(hard)


def slow_classes(z, vectors, y, kappa, bias):
    logits = np.array([kappa * cosine(z, c) for c in vectors])
    if bias is None:
        return np.log(np.exp(logits).sum()) - logits[y]
    p = 1 / (1 + np.exp(-(logits + bias)))
    return -sum(np.log(p[k]) if y[k] else np.log(1 - p[k]) for k in range(len(p)))


def slow_spread(z, M):
    return np.array([np.mean([(part**2).sum() for part in np.split(z, M, 1)[m]]) for m in range(M)])


def slow_loss(z, y, w, vectors, c, bias=None, v=None, held=None):
    """The terms; held: z and w where the gradient stops, else the same."""
    v = slow_spread(z, len(w)) if v is None else v
    z_held, w_held = (z, w) if held is None else held
    terms = dict.fromkeys(("classes", "soft classes", "codewords", "commit"), 0.0)
    for i in range(len(z)):
        soft, hard = slow_rebuilds(z[i], w, c.top, c.beta, v)
        terms["classes"] += slow_classes(z[i], vectors, y[i], c.kappa, bias)
        terms["soft classes"] += slow_classes(soft, vectors, y[i], c.kappa, bias)
        terms["codewords"] += ((z_held[i] - hard) ** 2).mean()
        terms["commit"] += c.commit * ((z[i] - slow_rebuilds(z_held[i], w_held, 1, 1.0, v)[1]) ** 2).mean()
    return {name: total / len(z) for name, total in terms.items()}


def loss_case(dtype, multilabel=False, **settings):
    """A method with codebooks at random places, z (6, 8), y."""
    method = build(
        begin=False, y=many_labels(drawn()[1]) if multilabel else None, x=drawn()[0] if multilabel else None, **settings
    )
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        method.codewords.copy_(torch.randn(method.codewords.shape, generator=generator))
        if multilabel:
            method.bias.copy_(torch.randn(C, generator=generator))
    method = method.to(dtype)
    method.quantizes = True
    z = torch.randn(6, 8, generator=generator, dtype=torch.float64).to(dtype)
    return method, z, method.y[:6]


@PRECISIONS
@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize("top", [1, 3, 8])
@pytest.mark.parametrize("beta", [0.0, 10.0])
def test_the_loss_equals_its_slow_twin(dtype, rtol, multilabel, top, beta):
    method, z, y = loss_case(dtype, multilabel, top=top, beta=beta, kappa=5.0, commit=0.4)
    got = method.loss_of(z, y)
    double = [t.detach().double().numpy() for t in (z, method.codewords, method.centers)]
    bias = method.bias.detach().double().numpy() if multilabel else None
    want = slow_loss(double[0], y.numpy(), *double[1:], method.config, bias)
    assert list(got) == list(want)
    for name, value in want.items():
        np.testing.assert_allclose(got[name].item(), value, rtol=rtol, atol=rtol, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize("top", [3, 8])
def test_gradients_equal_finite_differences(multilabel, top):
    """Of z, codewords, class vectors and bias; v and whatever stands behind a stopped gradient are constants."""
    method, z, y = loss_case(torch.float64, multilabel, top=top, kappa=4.0)
    z.requires_grad_()
    sum(method.loss_of(z, y).values()).backward()
    parts = [z, method.codewords, method.centers, *([method.bias] if multilabel else [])]
    start = [p.detach().numpy().copy() for p in parts]
    v, c = slow_spread(start[0], 2), method.config
    for which, part in enumerate(parts):
        for place in list(np.ndindex(part.shape))[::5]:
            values = []
            for sign in (1, -1):
                moved = [a.copy() for a in start]
                moved[which][place] += sign * 1e-6
                bias = moved[3] if multilabel else None
                values.append(
                    sum(slow_loss(moved[0], y.numpy(), *moved[1:3], c, bias, v, (start[0], start[1])).values())
                )
            want = (values[0] - values[1]) / 2e-6
            np.testing.assert_allclose(part.grad[place], want, rtol=1e-4, atol=1e-7)


# ------------------------------------------------------------------------------------------------------------ attention
def codebooks_and_rows(n=20, M=2, K=8, e=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(s, generator=generator, dtype=torch.float64) for s in ((M, K, e), (n, M * e)))


def test_attention_to_all_is_the_plain_softmax_and_to_one_the_hard_choice():
    w, z = codebooks_and_rows()
    v = phpq.spread(z, 2)
    soft, near, codes = phpq.attention(z, w, v, 8, 10.0)
    x = z.unflatten(1, (2, 3))
    a = (-10 * (x[:, :, None] - w).square().sum(3) / v[:, None]).softmax(2)  # b m k
    np.testing.assert_allclose(soft, torch.einsum("bmk,mke->bme", a, w).flatten(1), rtol=1e-12)
    assert near.shape == (2, 20, 8)
    one, near, same = phpq.attention(z, w, v, 1, 10.0)
    np.testing.assert_array_equal(one, phpq.decoded(w, codes))
    np.testing.assert_array_equal(near[:, :, 0].T, codes)
    np.testing.assert_array_equal(same, phpq.nearest(z.float(), w.float()))


def test_a_soft_rebuild_has_no_gradient_outside_the_codewords_attended_to():
    w, z = codebooks_and_rows(n=1)
    w.requires_grad_()
    soft, near, _ = phpq.attention(z, w, phpq.spread(z, 2), 3, 10.0)
    (soft.square().sum()).backward()
    inside = torch.zeros(2, 8, dtype=torch.bool).scatter_(1, near[:, 0], True)
    assert (w.grad[~inside] == 0).all() and (w.grad[inside] != 0).any(1).all()
    np.testing.assert_array_equal(phpq.attended(near, 8), inside.long())


def test_of_equal_codewords_the_first_is_chosen():
    z = torch.ones(2, 4)
    soft, _, codes = phpq.attention(z, torch.zeros(2, 8, 2), phpq.spread(z, 2), 3, 10.0)
    assert (codes == 0).all() and (soft == 0).all()


# ------------------------------------------------------------------------------------------------------------- training
def run(method, **engine):
    lines = []
    engine = Engine(method, seed=0, patience=0, **engine)
    engine.log = type("Lines", (), {"start": lambda *_: None, "__call__": lambda _, facts: lines.append(facts)})()
    engine.run()
    return lines


def numbers(method):
    return [a for _, arrays in method.layers() for a in arrays.values()] + [method.codebooks().centroids]


def test_z_starts_with_mean_square_1_and_begins_alike_again():
    method = build(begin=False)
    torch.manual_seed(9)
    method.begin()
    first = [t.clone() for t in (method.A, method.a)]
    z = method(torch.from_numpy(drawn()[0]))
    assert z.square().mean().item() == pytest.approx(1, rel=1e-4)
    np.testing.assert_allclose(z.mean(0).detach(), 0, atol=1e-4)
    method.begin()
    for a, b in zip(first, (method.A, method.a)):
        assert torch.equal(a, b)


def test_codebooks_start_by_k_means_after_the_first_epoch_and_are_used():
    method = build(batch_size=8, nbits=2, epochs=1)
    assert list(method.loss(torch.from_numpy(drawn()[0][:8]), torch.arange(8))) == ["classes"]
    assert (method.codewords == 0).all()
    (line,) = run(method)
    assert list(line["loss"]) == ["classes"]
    assert (line["codewords_used"], line["revived"]) == ([4, 4], 0)
    method.eval()
    z = method(torch.from_numpy(drawn()[0]))
    found = phpq.decoded(method.codewords, phpq.nearest(z, method.codewords))
    assert (z - found).square().mean() < 0.3 * z.square().mean()
    method.on_epoch(1)
    assert len(method.loss(torch.from_numpy(drawn()[0][:8]), torch.arange(8))) == 4


@pytest.mark.slow
@pytest.mark.parametrize("multilabel", [False, True])
def test_training_lowers_the_loss_and_the_codes_tell_the_classes_apart(multilabel):
    x, y = drawn(120)
    held, of_held = drawn(40, 1)
    labels, of_held_labels = (many_labels(y), many_labels(of_held, 2)) if multilabel else (y, of_held)
    method = build(x, labels, epochs=12, **{"training.lr": 5e-3}, nbits=2, top=2, validation=(held, of_held_labels))
    lines = run(method)
    assert lines[-1]["loss"]["classes"] < 0.5 * lines[0]["loss"]["classes"] or multilabel
    assert lines[-1]["loss"]["soft classes"] < lines[1]["loss"]["soft classes"]
    assert lines[-1]["validation"] < lines[0]["validation"]
    assert min(lines[-1]["codewords_used"]) >= 2
    if not multilabel:
        method.eval()
        with torch.no_grad():
            zb, zq = (method(torch.from_numpy(p)).numpy() for p in (x, held))
        scores = method.codebooks().scores(zq, method.codebooks().assign(zb, "l2"))
        assert np.mean(y[scores.argmax(1)] == of_held) > 2 * np.bincount(y).max() / len(y)  # far more than by chance


def test_no_epochs_still_make_codebooks():
    method = build(epochs=0)
    run(method)
    assert (phpq.use(phpq.nearest(method(torch.from_numpy(drawn()[0])), method.codewords), 8) > 0).any()
    assert method.codewords.abs().max() > 0


class Cut(Exception):
    """Stands for a kill between two steps."""


@pytest.mark.slow
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("cuts", [[2], [4], [9], [5, 5]])  # in the first epoch, at its end, in later ones
def test_a_training_that_is_cut_off_and_resumed_comes_to_the_same_bits(cuts, channels_last, tmp_path):
    def train(cut=None, folder=None):
        steps = [0]

        def progress(what, done, total, detail):
            steps[0] += what == "images"
            if steps[0] == cut:
                raise Cut

        network = backbone_of(norm=True, dropout=0.1, frozen_epochs=1, channels_last=channels_last)
        method = build(begin=False, epochs=3, network=network)
        kept = None if folder is None else Checkpoints(folder, dict, 1)
        engine = Engine(method, 3, progress=progress, checkpoints=kept)
        engine.run(resume=kept is not None)
        return method

    whole = train()
    for cut in cuts:
        with pytest.raises(Cut):
            train(cut, tmp_path / "c")
    again = train(None, tmp_path / "c")
    for a, b in zip(whole.state_dict().values(), again.state_dict().values()):
        assert torch.equal(a, b)
    for a, b in zip(numbers(whole), numbers(again)):
        np.testing.assert_array_equal(a, b)


def test_codewords_that_nothing_attended_to_move_to_rows_and_others_stay():
    method = build(nbits=3, top=2)
    method.start_codebooks()
    with torch.no_grad():
        method.codewords[0, 5:] += 100  # out of reach of all rows
        method.codewords[1, 0] -= 100
    before = method.codewords.detach().clone()
    method.on_epoch(1)
    x = torch.from_numpy(drawn()[0])
    for i in range(0, 64, 16):
        method.loss(x[i : i + 16], torch.arange(i, i + 16))
        with torch.no_grad():
            method.after_step()
    attended, z = method.attended.clone(), method.recent[:64].clone()
    assert int(method.held) == 64 and int(attended.sum()) == 64 * 2 * 2
    assert (attended[0, 5:] == 0).all() and attended[1, 0] == 0
    used = (method.chosen > 0).sum(1).tolist()
    facts = method.after_epoch(1)
    moved = (method.codewords != before).any(2)
    assert torch.equal(moved, attended == 0)
    assert facts == {"codewords_used": used, "revived": int(moved.sum())}
    parts = z.unflatten(1, (2, 4)).transpose(0, 1)
    for m, k in moved.nonzero().tolist():
        assert (parts[m] == method.codewords[m, k]).all(1).any()
    assert not method.attended.any() and not method.chosen.any() and not method.held
    still = build(nbits=3, top=2, revive=False)
    still.load_state_dict(method.state_dict())
    still.attended[:, 0] = 1
    assert still.after_epoch(2)["revived"] == 0


def test_validation_is_the_sum_of_both_losses_over_the_rows_that_have_a_label():
    x, y = drawn(30, 4)
    multi_hot = many_labels(y)
    multi_hot[[3, 8]] = 0
    for labels, some in ((y, np.arange(30)), (multi_hot, np.flatnonzero(multi_hot.any(1)))):
        base = many_labels(drawn()[1]) if labels is multi_hot else drawn()[1]
        method = build(drawn()[0], base, validation=(x, labels))
        method.start_codebooks()
        got = method.validate()
        with torch.no_grad():
            z = method(torch.from_numpy(x[some])).double().numpy()
        w, c = (t.detach().double().numpy() for t in (method.codewords, method.centers))
        bias = None if method.bias is None else method.bias.detach().double().numpy()
        want = slow_loss(z, labels[some], w, c, method.config, bias)
        assert got == pytest.approx(want["classes"] + want["soft classes"], rel=1e-4)
        assert method.validate() == got


def test_codebooks_start_from_the_rows_given_for_them():
    method = build(nbits=2)
    other = drawn(4, 9)[0]
    rows = ImageRows(Drawn(other), method.encoder.width, "cpu", 1 << 20)
    method.task = dataclasses.replace(method.task, codebook_rows=rows)
    method.start_codebooks()
    z = method(torch.from_numpy(other)).detach()  # as many rows as codewords: each is one
    np.testing.assert_allclose(phpq.decoded(method.codewords.detach(), phpq.nearest(z, method.codewords)), z, atol=1e-3)


def test_layers_map_pooled_features_to_z():
    method = build()
    x = torch.from_numpy(drawn()[0])
    method.eval()
    g = method.encoder.features(drawn()[0])
    with torch.no_grad():
        np.testing.assert_allclose(Chain(method.encoder.width).then(*method.layers())(g), method(x), atol=1e-5)
    assert method.summary() == {"class_vectors": "learned", "feature_maps": 2}
    assert method.codebooks().centroids.shape == (2, 8, 4)


def test_what_learns_has_its_rates():
    method = build(
        y=many_labels(drawn()[1]),
        x=drawn()[0],
        **{"training.lr": 0.01, "training.free_lr": 3.0},
        network=backbone_of(backbone_lr=0.1),
    )
    optimizer, _ = method.stages()[0].optimizer_steps[0].make_optimizer(10)
    rates = {id(p): (g["initial_lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert rates.keys() == {id(p) for p in method.parameters()}
    assert rates[id(method.A)] == (0.01, 0.01)
    assert {rates[id(p)] for p in (method.codewords, method.centers, method.bias)} == {(0.03, 0.0)}
    assert rates[id(method.encoder.net[0].weight)] == (0.001, 0.05)
    assert "centers" not in dict(build(vectors="centers").named_parameters())


# ------------------------------------------------------------------------------------------------------------ edge cases
def test_images_that_are_all_alike_train_to_finite_numbers():
    method = build(
        np.full((40, 3, SIDE, SIDE), 7, np.uint8), np.arange(40) % 2, nbits=2, network=backbone_of(augment="none")
    )
    run(method)
    assert all(np.isfinite(a).all() for a in numbers(method))


@pytest.mark.parametrize("n", [2, 3, 5])
def test_very_few_images_train(n):
    x, y = drawn(n)
    with pytest.warns(match=f"^{n} rows can use at most {n} of 8 codewords$"):
        method = build(x, y, batch_size=2)
    run(method)
    assert all(np.isfinite(a).all() for a in numbers(method))


@pytest.mark.parametrize(
    "settings, words",
    [
        ({}, "^phpq pools feature maps of images; for stored features use method scq$"),
        ({"top": 0}, "^top is 0, needs 1 to 65536$"),
    ],
)
def test_stored_features_are_refused(settings, words, one):
    with pytest.raises(ConfigError, match=words):
        scqfaiss.train(*one, method="phpq", bits=16, nbits=4, **settings)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"top": 17}, r"^top is 17, needs 1 to K=16 codewords \(--nbits 4\)$"),
        ({"d": 30}, "^d=30 is not divisible by M=4 codebooks; need M of 3 or 5$"),
        ({"d": 8, "top": 2}, "^d=8 in M=4 codebooks leaves 2 dimensions a codebook, which needs --nbits 3 or more$"),
    ],
)
def test_what_cannot_work_is_refused(settings, words):
    nbits = 2 if settings.get("d") == 8 else 4
    with pytest.raises(ConfigError, match=words):
        PHPQ.check(configure(Settings, settings), 14, 4, 4, nbits, "pkg:net", IMAGES)


def test_the_dimension_of_z_is_128_or_the_next_that_the_codebooks_divide():
    assert [phpq.z_dimension(Settings(), M) for M in (1, 4, 6, 8, 200)] == [128, 128, 132, 128, 200]
    assert phpq.z_dimension(Settings(d=30), 6) == 30


def test_the_network_must_pool_its_maps_and_should_have_several():
    with pytest.raises(ConfigError, match=r"^phpq pools feature maps by pool=hybrid, got pool=average$"):
        build(network=backbone_of(pool="average"))
    with pytest.warns(
        match="^the network gives one feature map, phpq is made for those of several stages: name them by"
    ):
        build(network=backbone_of(stages=1))
    assert PHPQ.encoder_defaults["pool"] == "hybrid"


def test_validation_images_without_any_label_are_refused():
    x, y = drawn()
    with pytest.raises(DataError, match=r"^none of 5 validation images has a label, at least 1 must$"):
        build(x, many_labels(y), validation=(x[:5], np.zeros((5, C), np.uint8)))


# ---------------------------------------------------------------------------------------------------- several processes
def two_steps(method):
    """Two steps on 16 images, of which every process takes its share -> losses, gradients, what was noted."""
    method.start_codebooks()
    method.on_epoch(1)
    x, _ = drawn()
    for i in (0, 16):
        for p in method.parameters():
            p.grad = None
        terms = method.loss(*distributed.shard((torch.from_numpy(x[i : i + 16]), torch.arange(i, i + 16))))
        sum(terms.values()).backward()
        with torch.no_grad():
            method.after_step()
    distributed.average_gradients(method.parameters())
    terms = distributed.average(torch.stack([t.detach() for t in terms.values()]))
    grads = [p.grad for p in (method.A, method.a, method.codewords, method.centers, method.encoder.net[0].weight)]
    return terms, grads, [method.attended, method.chosen, method.held, method.recent[:32].sum(0)]


def share_of_two(rank, file):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    torch.save(two_steps(build()), f"{file}.{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="gloo by file")
def test_two_processes_do_what_one_does_with_all_rows(tmp_path):
    want = two_steps(build())
    multiprocessing.spawn(share_of_two, (str(tmp_path / "meet"),), nprocs=2)
    for rank in range(2):
        terms, grads, noted = torch.load(tmp_path / f"meet.{rank}.pt")
        np.testing.assert_allclose(terms, want[0], rtol=1e-4)
        for got, wanted in zip(grads, want[1]):
            np.testing.assert_allclose(got, wanted, atol=1e-4 * wanted.abs().max().item())
        for got, wanted in zip(noted[:3], want[2]):
            assert torch.equal(got, wanted)
        np.testing.assert_allclose(noted[3], want[2][3], rtol=1e-4, atol=1e-4)


def test_settings_are_plain_values():
    assert all(type(f.default) in (int, float, bool, str) for f in settings_of(Settings).values())
