"""All claims, in the paper's order."""

from firstlight.claims.agile import C18
from firstlight.claims.boot import C1, C2, C3, C4, C5, C6
from firstlight.claims.cni import C12, C13, C14, C15, C16, C17
from firstlight.claims.containers import C7, C8, C9, C10, C11

ALL = (C1, C2, C3, C4, C5, C6, C7, C8, C9, C10, C11, C12, C13, C14, C15, C16, C17, C18)
