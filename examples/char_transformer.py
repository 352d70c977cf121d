"""A small Transformer that learns Shakespeare's sonnets letter by letter, beside the same training with torch's Adam.

Start a server (`adamd serve`), then: python examples/char_transformer.py [steps] [curves.png]
"""

from pathlib import Path

import torch
from curves import draw, steps_and_path, train_both
from torch import nn

steps, path = steps_and_path(600, "char_transformer.png")
torch.manual_seed(0)
torch.use_deterministic_algorithms(True)

text = (Path(__file__).parent / "texts" / "sonnets.txt").read_text()
letters = sorted(set(text))
codes = torch.tensor([letters.index(letter) for letter in text])
CONTEXT, BATCH, WIDTH, HEADS, LAYERS = 64, 32, 64, 4, 2


class Transformer(nn.Module):
    """Letters in, the scores of each following letter out: decoder blocks that see only what came before."""

    def __init__(self):
        super().__init__()
        self.letter = nn.Embedding(len(letters), WIDTH)
        self.place = nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                WIDTH, HEADS, 4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(LAYERS)
        )
        self.norm = nn.LayerNorm(WIDTH)
        self.scores = nn.Linear(WIDTH, len(letters))

    def forward(self, given):
        """(batch, length) codes of letters -> (batch, length, letters) scores."""
        length = given.shape[1]
        x = self.letter(given) + self.place(torch.arange(length))
        future = nn.Transformer.generate_square_subsequent_mask(length)
        for block in self.blocks:
            x = block(x, src_mask=future, is_causal=True)
        return self.scores(self.norm(x))


def batches():
    """The same for every run: BATCH pieces of CONTEXT letters, and the letter after each."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        begins = torch.randint(len(codes) - CONTEXT - 1, (BATCH, 1), generator=generator)
        yield codes[begins + torch.arange(CONTEXT + 1)]


def loss_of(network, batch):
    """Cross-entropy of every next letter."""
    scores = network(batch[:, :-1])
    return nn.functional.cross_entropy(scores.flatten(0, 1), batch[:, 1:].flatten())


@torch.no_grad()
def written(network, begin, count):
    """Let the network write on."""
    generator = torch.Generator().manual_seed(2)
    came = torch.tensor([[letters.index(letter) for letter in begin]])
    for _ in range(count):
        likely = network(came[:, -CONTEXT:])[0, -1].softmax(0)
        came = torch.cat([came, torch.multinomial(likely, 1, generator=generator)[None]], 1)
    return "".join(letters[code] for code in came[0])


model, curves = train_both(Transformer(), loss_of, batches(), lr=0.003)
print(f"after {steps} steps it writes:\n{written(model.eval(), 'Shall I compare thee', 160)}\n")
draw(path, curves, "A character Transformer on Shakespeare's sonnets, 32 × 64 letters a step")
