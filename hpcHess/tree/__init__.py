"""The cluster tree: embedding, distances, splits, near and far pairs."""

from hpcHess.tree.build import build_tree
from hpcHess.tree.tree import Tree

__all__ = ["Tree", "build_tree"]
