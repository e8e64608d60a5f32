"""Finding copies: images that show the same picture mirrored, re-encoded, resized or in another brightness."""

from collections.abc import Iterator

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from braintumor.images import resize_square

SIDE = 32  # of a signature, in cells; each is the mean of a block of 7 x 7 pixels
DECODED = 224  # side of the image that a signature is made from


def signature(grey: np.ndarray) -> np.ndarray:
    """Return what is left of a picture when size, encoding, brightness and contrast are taken out.

    The image is stretched to 224 x 224, then to 32 x 32 by block means; the mean is subtracted and the result
    divided by its norm, so that the dot product of two signatures is their correlation.

    Parameters
    ----------
    grey : ndarray of shape (rows, columns), uint8

    Returns
    -------
    ndarray of shape (1024,), float32
        Norm 1, or all zeros for an image of one value.
    """
    block = DECODED // SIDE
    square = resize_square(grey, DECODED).astype(np.float32)
    cells = square.reshape(SIDE, block, SIDE, block).mean(axis=(1, 3)).ravel()
    cells -= cells.mean()
    norm = np.linalg.norm(cells)
    return cells / norm if norm > 1e-3 else np.zeros_like(cells)


def mirrored(signatures: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the signatures as they are, mirrored left-right, mirrored top-bottom, and both.

    Parameters
    ----------
    signatures : ndarray of shape (n, 1024)
    """
    cells = signatures.reshape(-1, SIDE, SIDE)
    for view in (cells, cells[:, :, ::-1], cells[:, ::-1], cells[:, ::-1, ::-1]):
        yield np.ascontiguousarray(view).reshape(len(signatures), -1)


def similarity(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return the largest correlation of each pair over the four ways of mirroring one of them.

    Parameters
    ----------
    left : ndarray of shape (m, 1024), float32
    right : ndarray of shape (n, 1024), float32

    Returns
    -------
    ndarray of shape (m, n), float32
        -1 to 1; above 0.99 the two are copies.
    """
    best: np.ndarray | None = None
    for view in mirrored(left):
        product = view @ right.T
        best = product if best is None else np.maximum(best, product, out=best)
    return best


def find_copies(
    signatures: np.ndarray, hashes: list[str], threshold: float, block: int = 2048
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Group images that are copies of each other, directly or through others.

    Only blocks of the similarity matrix are held, so memory grows with the number of images, not its square.

    Parameters
    ----------
    signatures : ndarray of shape (n, 1024), float32
    hashes : list of n str
        Of the files' bytes; equal ones are copies whatever their signatures.
    threshold : float
        Images more similar than this are copies.
    block : int
        Rows and columns of the matrix held at a time.

    Returns
    -------
    groups : ndarray of shape (n,), int
        Copy group of each image, numbered from 0 in the order in which the images come.
    nearest : ndarray of shape (n,), int
        Index of the most similar other image; -1 where there is no other.
    nearest_similarity : ndarray of shape (n,), float32
        Four decimals; the first of several equally similar images is the nearest.
    """
    n = len(signatures)
    nearest = np.full(n, -1)
    nearest_similarity = np.full(n, -np.inf, np.float32)
    edges = [_equal_neighbours(hashes)]
    for top in range(0, n, block):
        for left in range(top, n, block):
            matrix = similarity(signatures[top : top + block], signatures[left : left + block])
            if left == top:
                np.fill_diagonal(matrix, -np.inf)
            rows, columns = np.nonzero(matrix > threshold)
            edges.append(np.stack([rows + top, columns + left]))
            np.round(matrix, 4, out=matrix)  # so that the last bit does not choose among several exact copies
            for rows, columns, values in ((top, left, matrix), (left, top, matrix.T)):
                index = values.argmax(axis=1)
                value = np.take_along_axis(values, index[:, None], axis=1)[:, 0]
                block_rows = slice(rows, rows + len(value))
                better = value > nearest_similarity[block_rows]
                nearest_similarity[block_rows][better] = value[better]
                nearest[block_rows][better] = index[better] + columns
    return connected(n, np.concatenate(edges, axis=1)), nearest, nearest_similarity


def connected(n: int, edges: np.ndarray) -> np.ndarray:
    """Return the number of each node's connected component, in the order of first nodes.

    Parameters
    ----------
    n : int
        Number of nodes.
    edges : ndarray of shape (2, m), int

    Returns
    -------
    ndarray of shape (n,), int
    """
    graph = coo_array((np.ones(edges.shape[1], bool), (edges[0], edges[1])), shape=(n, n))
    labels = connected_components(graph, directed=False)[1]
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


def join_groups(*partitions: list) -> np.ndarray:
    """Join images that share a value in any of several partitions, directly or through others.

    Parameters
    ----------
    *partitions : sequences of length n
        One label per image; None and NaN say that nothing is known and join nothing.

    Returns
    -------
    ndarray of shape (n,), int
        Numbered from 0 in the order in which the images come.
    """
    edges = np.concatenate([_equal_neighbours(partition) for partition in partitions], axis=1)
    return connected(len(partitions[0]), edges)


def _equal_neighbours(labels: list) -> np.ndarray:
    """Return edges of shape (2, m) from each item to the first that has the same label."""
    first: dict = {}
    known = [(i, label) for i, label in enumerate(labels) if label is not None and label == label]
    edges = [(first.setdefault(label, i), i) for i, label in known]
    return np.array(edges, int).reshape(-1, 2).T
