"""The toy networks of the conformance kit, under the name by which tests ask for them."""

from distill.testing.toys import Affine, Gaussian, GaussianEuler, Toy, batch, curved, net, place, straight, text

__all__ = ["Affine", "Gaussian", "GaussianEuler", "Toy", "batch", "curved", "net", "place", "straight", "text"]
