"""What the server that processes are forked from imports besides (places.py): deepspeed, which takes seconds."""

import os

os.environ["DS_ACCELERATOR"] = "cpu"  # the kit uses no GPU

import deepspeed  # noqa: F401
