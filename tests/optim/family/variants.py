"""Settings by which every choice of every text beside Adam's is taken, both ways."""

from itertools import product

DECAYS = {"coupled": {"weight_decay": 0.1}, "": {}}


def _named(*words):
    return " ".join(word for word in words if word)


VARIANTS = {
    "nadam": {"name": "nadam"},
    "nadam coupled": {"name": "nadam", "weight_decay": 0.1, "momentum_decay": 0.1, "betas": [0.8, 0.9]},
    "nadam decoupled": {"name": "nadam", "weight_decay": 0.1, "decoupled_weight_decay": True, "maximize": True},
    "nadam hat eps 0": {"name": "nadam", "eps": 0, "eps_form": "hat", "lr": 0.1},
    "nadam uncorrected": {"name": "nadam", "bias_correction": False},
    "radam": {"name": "radam"},
    "radam coupled": {"name": "radam", "weight_decay": 0.1, "betas": [0.8, 0.99], "lr": 0.1},
    "radam decoupled outside": {
        "name": "radam",
        "weight_decay": 0.1,
        "decoupled_weight_decay": True,
        "eps_form": "outside",
        "maximize": True,
    },
    "radam eps 0": {"name": "radam", "eps": 0},
    "radam never rectified": {"name": "radam", "betas": [0.9, 0.5], "weight_decay": 0.1},
    "adamax": {"name": "adamax"},
    "adamax coupled": {"name": "adamax", "weight_decay": 0.1, "maximize": True, "lr": 0.1},
    "adamax eps 0": {"name": "adamax", "eps": 0, "betas": [0.8, 0.9]},
    "adamax uncorrected": {"name": "adamax", "bias_correction": False},
    "yogi": {"name": "yogi"},
    "yogi hat": {"name": "yogi", "eps_form": "hat", "maximize": True, "betas": [0.8, 0.9]},
    "yogi from 0 eps 0": {"name": "yogi", "initial_accumulator_value": 0, "eps": 0},
    "adagrad": {"name": "adagrad"},
    "adagrad coupled": {"name": "adagrad", "weight_decay": 0.1, "maximize": True, "lr_decay": 0.1},
    "adagrad from 0.1": {"name": "adagrad", "initial_accumulator_value": 0.1, "eps": 1e-3},
    "adagrad eps 0": {"name": "adagrad", "eps": 0},
    **{
        _named("rmsprop", decay, centered, heavy): {
            "name": "rmsprop",
            **DECAYS[decay],
            **({"centered": True, "alpha": 0.9} if centered else {}),
            **({"momentum": 0.9, "maximize": True} if heavy else {}),
        }
        for decay, centered, heavy in product(DECAYS, ("centered", ""), ("momentum", ""))
    },
    "rmsprop centered eps 0": {"name": "rmsprop", "centered": True, "eps": 0},
    **{
        _named("sgd", decay, heavy): {
            "name": "sgd",
            "lr": 0.1,
            **DECAYS[decay],
            **({"momentum": 0.9} if heavy else {}),
            **({"dampening": 0.3} if heavy == "dampened" else {}),
            **({"nesterov": True, "maximize": True} if heavy == "nesterov" else {}),
        }
        for decay, heavy in product(DECAYS, ("momentum", "dampened", "nesterov", ""))
    },
    # There is the array, and the momentum is 0: it is not read, and not written.
    "sgd momentum 0": {"name": "sgd", "lr": 0.1, "momentum_buffer": True},
    "sgd coupled nesterov momentum 0": {"name": "sgd", "weight_decay": 0.1, "nesterov": True, "momentum_buffer": True},
    "rmsprop momentum 0": {"name": "rmsprop", "momentum_buffer": True},
    "rmsprop centered momentum 0": {"name": "rmsprop", "centered": True, "momentum_buffer": True},
    "lion": {"name": "lion"},
    "lion without decay": {"name": "lion", "weight_decay": 0, "lr": 0.01, "maximize": True},
    "lion far": {"name": "lion", "weight_decay": 0.5, "lr": 0.1, "betas": [0.5, 0.6]},
    "schedule_free_adamw": {"name": "schedule_free_adamw"},
    "schedule_free_adamw decays": {"name": "schedule_free_adamw", "weight_decay": 0.1, "lr": 0.1, "maximize": True},
    "schedule_free_adamw warm-up": {"name": "schedule_free_adamw", "warmup_steps": 8, "r": 1, "betas": [0.95, 0.9]},
    "schedule_free_adamw eps 0": {"name": "schedule_free_adamw", "eps": 0, "weight_lr_power": 0},
    "fedadam": {"name": "fedadam"},
    "fedadam torch": {"name": "fedadam", "form": "torch", "maximize": True, "betas": [0.8, 0.9]},
    "fedadam flower": {"name": "fedadam", "form": "flower", "eps": 1e-8},
    "fedyogi": {"name": "fedyogi", "maximize": True},
    "fedyogi torch": {"name": "fedyogi", "form": "torch", "betas": [0.8, 0.9]},
    "fedyogi flower": {"name": "fedyogi", "form": "flower", "eps": 0},
    "fedadagrad": {"name": "fedadagrad", "betas": [0.9, 0]},
    "fedadagrad torch": {"name": "fedadagrad", "form": "torch", "betas": [0.8, 0], "maximize": True},
    "fedadagrad flower eps 0": {"name": "fedadagrad", "form": "flower", "eps": 0},
}
# One for each optimizer, with the most choices taken: for what takes long.
FULLEST = [
    "nadam coupled",
    "radam coupled",
    "adamax coupled",
    "yogi",
    "adagrad coupled",
    "rmsprop coupled centered momentum",
    "sgd coupled nesterov",
    "lion far",
    "schedule_free_adamw decays",
    "fedadam",
    "fedyogi",
    "fedadagrad",
]
