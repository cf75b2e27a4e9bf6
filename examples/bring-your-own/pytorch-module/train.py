"""Two networks for images of digits: weights for model.py, and a smaller one as an .onnx file."""

import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "net"))
from model import Net  # noqa: E402

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
images = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8)
x_train, x_test, y_train, y_test = train_test_split(images, torch.tensor(labels), random_state=0)


def trained(net: torch.nn.Module) -> torch.nn.Module:
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(x_train), y_train).backward()
        optimizer.step()
    return net.eval()


def accuracy(net: torch.nn.Module) -> float:
    return (net(x_test).argmax(1) == y_test).float().mean().item()


large = trained(Net(channels=32))
torch.save(large.state_dict(), HERE / "net" / "weights.pt")
print(f"net/weights.pt: accuracy {accuracy(large):.3f}")

small = trained(Net(channels=2))
torch.onnx.export(
    small,
    (x_test[:2],),
    HERE / "small.onnx",
    input_names=["image"],
    output_names=["scores"],
    dynamic_shapes=({0: torch.export.Dim("rows")},),  # any number of images
    verbose=False,
)
print(f"small.onnx: accuracy {accuracy(small):.3f}")
