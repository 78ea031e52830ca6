"""Lightning and Hugging Face's Trainer themselves: `make test-integrations` installs them."""

import math
import warnings
from contextlib import contextmanager

import pytest
import torch
from torch import nn

import mirabelle as mb
from mirabelle.base.errors import LimitError
from tests.integrations.trainers import OPTIONS, data, network, optimizer_of, same, sparse
from tests.integrations.trainers import Teller as _Teller

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore"),  # of the packages, which are not ours to mend
]
LOSSES = {"kd": 0.5, "labels": 1.0}


@contextmanager
def silent():
    """Packages warn when they are imported, before any mark counts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def lightning():
    with silent():
        return pytest.importorskip("lightning.pytorch", exc_type=ImportError)


@pytest.fixture(scope="module")
def transformers():
    with silent():
        pytest.importorskip("accelerate")
        return pytest.importorskip("transformers", exc_type=ImportError)


def loader(batches):
    return torch.utils.data.DataLoader(batches, batch_size=None)


def fit(lightning, model, tmp_path, *callbacks, batches=None, **options):
    class Plain(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = model

        def training_step(self, batch, index):
            x, y = batch
            loss = nn.functional.cross_entropy(self.model(x), y)
            self.log("loss", loss)
            return loss

        def validation_step(self, batch, index):
            x, y = batch
            self.log("val_accuracy", (self.model(x).argmax(1) == y).float().mean())

        def configure_optimizers(self):
            return optimizer_of(self)

    trainer = lightning.Trainer(
        accelerator="cpu",
        callbacks=list(callbacks),
        max_epochs=2,
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"logger": False, "enable_checkpointing": False, **options},
    )
    trainer.fit(Plain(), loader(batches or data()), loader(data()[:1]))
    return model, trainer


@pytest.mark.parametrize("clip", [None, 0.5])
def test_lightning_keeps_zeros_and_gives_the_loops_weights(lightning, tmp_path, clip):
    keep = mb.integrations.lightning.callback()
    own, _ = fit(lightning, sparse(), tmp_path, keep, gradient_clip_val=clip)
    ours = mb.fit(sparse(), data(), epochs=2, clip=clip, **OPTIONS)
    assert same(own, ours)


def test_lightning_distils_as_distill_does(lightning, tmp_path):
    teacher = network(5)
    keep = mb.integrations.lightning.callback(teacher=teacher, losses=LOSSES)
    own, trainer = fit(lightning, sparse(), tmp_path, keep)
    assert same(own, mb.distill(sparse(), teacher, data(), losses=LOSSES, epochs=2, **OPTIONS))
    assert {"mirabelle/kd", "mirabelle/sparsity"} <= set(trainer.callback_metrics)


def test_lightning_accumulates_as_the_loop_does(lightning, tmp_path):
    teacher, batches = network(5), [*data(), *data()[:1]]
    keep = mb.integrations.lightning.callback(teacher=teacher, losses={"kd": 1.0})
    own, _ = fit(lightning, sparse(), tmp_path, keep, batches=batches, accumulate_grad_batches=2)
    options = {"losses": {"kd": 1.0}, "epochs": 2, "accumulate": 2, **OPTIONS}
    assert same(own, mb.distill(sparse(), teacher, batches, **options))


def test_lightning_makes_networks_sparser_and_trains_quantized_ones(lightning, tmp_path):
    more = {"sparsity": 0.8, "cuts": 3}
    keep = mb.integrations.lightning.callback(sparsify=more)
    own, _ = fit(lightning, network(), tmp_path, keep)
    assert same(own, mb.fit(network(), data(), epochs=2, sparsify=more, **OPTIONS))
    assert mb.sparsity.masks.blocks(own)
    q = mb.quantize(network(), data())
    ours = mb.fit(q, data(), epochs=2, **OPTIONS)
    assert same(fit(lightning, q, tmp_path, mb.integrations.lightning.callback())[0], ours)


def test_lightning_ends_with_a_missed_limit(lightning, tmp_path):
    keep = mb.integrations.lightning.callback(limits=["val_accuracy >= 1.5"])
    with pytest.raises(LimitError, match="val_accuracy"):
        fit(lightning, network(), tmp_path, keep)
    held = mb.integrations.lightning.callback(limits=["val_accuracy >= 0"])
    fit(lightning, network(), tmp_path, held)


class Teller(_Teller):
    """With the items of a step as a keyword, as Hugging Face's language models take them."""

    def forward(self, x, labels=None, **loss_kwargs):
        return super().forward(x, labels, **loss_kwargs)


def train(transformers, model, tmp_path, *callbacks, outside=None, accumulate=1):
    teller = (
        Teller(model, silent=outside is not None)
        if accumulate > 1
        else _Teller(model, silent=outside is not None)
    )
    rows = [{"x": x[i], "labels": int(y[i])} for x, y in data() for i in range(len(y))]

    class InOrder(transformers.Trainer):
        def _get_train_sampler(self, *args):
            return torch.utils.data.SequentialSampler(rows)

    optimizer = optimizer_of(teller)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        num_train_epochs=2,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=accumulate,
        max_grad_norm=0.0,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
    )
    trainer = InOrder(
        teller,
        arguments,
        train_dataset=rows,
        callbacks=list(callbacks),
        compute_loss_func=outside,
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)),
    )
    trainer.train()
    return model, trainer


def test_trainer_keeps_zeros_and_gives_the_loops_weights(transformers, tmp_path):
    keep = mb.integrations.transformers.callback()
    own, _ = train(transformers, sparse(), tmp_path, keep)
    assert same(own, mb.fit(sparse(), data(), epochs=2, **OPTIONS))


@pytest.mark.parametrize("losses", [LOSSES, {"kd": 1.0}], ids=str)
def test_trainer_distils_as_distill_does(transformers, tmp_path, losses):
    teacher = network(5)
    keep = mb.integrations.transformers.callback(teacher=teacher, losses=losses)
    own, trainer = train(transformers, sparse(), tmp_path, keep)
    assert same(own, mb.distill(sparse(), teacher, data(), losses=losses, epochs=2, **OPTIONS))
    assert math.isfinite(trainer.state.log_history[0]["loss"])


def test_trainer_counts_accumulated_steps_once(transformers, tmp_path):
    teacher = network(5)
    keep = mb.integrations.transformers.callback(teacher=teacher, losses=LOSSES)
    own, _ = train(transformers, network(), tmp_path, keep, accumulate=3)
    ours = mb.distill(network(), teacher, data(), losses=LOSSES, epochs=2, accumulate=3, **OPTIONS)
    for a, b in zip(own.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_trainer_trains_quantized_networks_with_a_loss_from_outside(transformers, tmp_path):
    q, teacher = mb.quantize(network(), data()), network(5)
    keep = mb.integrations.transformers.callback(teacher=teacher, losses=LOSSES)

    def loss(outputs, labels):
        return nn.functional.cross_entropy(outputs["logits"], labels)

    ours = mb.distill(q, teacher, data(), losses=LOSSES, epochs=2, **OPTIONS)
    own, _ = train(transformers, q, tmp_path, keep, outside=keep.compute_loss(loss))
    assert same(own, ours)


def test_trainer_makes_networks_sparser_and_checks_limits(transformers, tmp_path):
    more = {"sparsity": 0.8, "cuts": 3}
    limits = ["mirabelle/sparsity >= 0.5", "loss <= 100"]
    keep = mb.integrations.transformers.callback(sparsify=more, limits=limits)
    own, _ = train(transformers, network(), tmp_path, keep)
    assert same(own, mb.fit(network(), data(), epochs=2, sparsify=more, **OPTIONS))
    with pytest.raises(LimitError, match="loss is"):
        train(
            transformers,
            network(),
            tmp_path,
            mb.integrations.transformers.callback(limits=["loss <= 0"]),
        )


def test_trainer_distils_a_bert(transformers, tmp_path):
    """A network of the package's own, whose output is a class of its own."""
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=16, num_labels=3,
    )  # fmt: skip
    torch.manual_seed(0)
    student, teacher = (transformers.BertForSequenceClassification(config) for _ in range(2))
    rows = [{"input_ids": torch.randint(0, 20, (8,)), "labels": i % 3} for i in range(16)]
    lines = []
    keep = mb.integrations.transformers.callback(
        teacher=teacher, losses=LOSSES, log=lambda step, found: lines.append(found)
    )
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=4, per_device_train_batch_size=8, use_cpu=True,
        report_to=[], save_strategy="no", logging_steps=1, disable_tqdm=True,
    )  # fmt: skip
    transformers.Trainer(student, arguments, train_dataset=rows, callbacks=[keep]).train()
    assert [set(line) for line in lines[:4]] == [{"mirabelle/kd"}] * 4
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
