"""The front door: `python train.py model=vgg16 strategy=finetune`, the same as `graft train …`."""

from graft.cli import program

if __name__ == "__main__":
    program("train")
