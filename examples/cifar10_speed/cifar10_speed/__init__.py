"""The CIFAR-10 recipe of airbench94 (Jordan 2024, arXiv 2404.00498): a network, a callback, two views, a transform."""
