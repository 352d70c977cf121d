"""The trainers that people use: Hugging Face's Trainer, accelerate, Lightning. Stopped in the middle and resumed."""

import warnings
from importlib.util import find_spec

import pytest
import torch
from digits import flat

import adamd
import adamd.torch

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:(accelerate|transformers|lightning|torch)"),
]
STEPS, BREAK = 8, 4


def needs(name):
    return pytest.mark.skipif(find_spec(name) is None, reason=f"no {name} here; .ci/environments installs it")


def data():
    x = torch.linspace(-1, 1, 64 * 3).view(64, 3)
    return x, x.sum(1, keepdim=True)


def network(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))


def batch(number):
    x, y = data()
    rows = slice(8 * number, 8 * number + 8)
    return x[rows], y[rows]


def loss_of(model, number):
    x, y = batch(number)
    return torch.nn.functional.mse_loss(model(x), y)


# -- accelerate


def accelerated(client, model, name=None):
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    optimizer = adamd.torch.AdamW(model.named_parameters(), lr=0.05, client=client, session=name)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5)
    return accelerator, *accelerator.prepare(model, optimizer, scheduler)


def accelerate_steps(accelerator, model, optimizer, scheduler, numbers):
    for number in numbers:
        optimizer.zero_grad()
        accelerator.backward(loss_of(model, number))
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()


@needs("accelerate")
def test_accelerate(client, name, tmp_path):
    whole = network()
    accelerate_steps(*accelerated(client, whole), range(STEPS))
    first = network()
    accelerator, *made = accelerated(client, first, name)
    accelerate_steps(accelerator, *made, range(BREAK))
    accelerator.save_state(tmp_path, safe_serialization=False)
    again = network(seed=5)
    accelerator, *made = accelerated(client, again)
    accelerator.load_state(tmp_path)
    accelerate_steps(accelerator, *made, range(BREAK, STEPS))
    assert torch.equal(flat(again), flat(whole))
    assert made[1].optimizer.session.step_number == STEPS


# -- Lightning


@needs("lightning")
def test_lightning(client, tmp_path):
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self, seed):
            super().__init__()
            self.net = network(seed)

        def training_step(self, given, index):
            x, y = given
            return torch.nn.functional.mse_loss(self.net(x), y)

        def configure_optimizers(self):
            optimizer = adamd.torch.Adam(self.net.named_parameters(), lr=0.05, client=client)
            scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data()), batch_size=8)

    def fit(module, epochs, resumed=None):
        trainer = lightning.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            gradient_clip_val=1.0,
        )
        trainer.fit(module, loader, ckpt_path=resumed)
        return trainer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole, first, again = Module(0), Module(0), Module(7)
        fit(whole, 2)  # epochs: Lightning begins one anew where it is resumed
        fit(first, 1).save_checkpoint(tmp_path / "half.ckpt")
        trainer = fit(again, 2, tmp_path / "half.ckpt")
    assert torch.equal(flat(again), flat(whole))
    assert trainer.optimizers[0].session.step_number == 16


# -- Trainer


@needs("transformers")
def test_trainer(client, tmp_path):
    from transformers import Trainer, TrainingArguments, get_scheduler

    class Model(torch.nn.Module):
        def __init__(self, seed):
            super().__init__()
            self.net = network(seed)

        def forward(self, x, labels=None):
            found = self.net(x)
            return {"loss": torch.nn.functional.mse_loss(found, labels), "logits": found}

    x, y = data()
    rows = [{"x": a, "labels": b} for a, b in zip(x, y, strict=True)]

    def trained(seed, steps, where, resumed=None):
        model = Model(seed)
        optimizer = adamd.torch.AdamW(model.named_parameters(), lr=0.05, client=client)
        scheduler = get_scheduler("linear", optimizer, num_warmup_steps=2, num_training_steps=STEPS)
        arguments = TrainingArguments(
            output_dir=str(where),
            max_steps=steps,
            per_device_train_batch_size=8,
            save_steps=BREAK,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            logging_strategy="no",
        )
        trainer = Trainer(model=model, args=arguments, train_dataset=rows, optimizers=(optimizer, scheduler))
        trainer.train(resume_from_checkpoint=resumed)
        return model, optimizer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole, optimizer = trained(0, STEPS, tmp_path / "whole")
        assert optimizer.session.step_number == STEPS
        again, optimizer = trained(9, STEPS, tmp_path / "again", str(tmp_path / "whole" / f"checkpoint-{BREAK}"))
    assert torch.equal(flat(again), flat(whole))
    assert optimizer.session.step_number == STEPS
