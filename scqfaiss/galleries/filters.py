"""Filters of a search by id, for the targets that have them."""

from __future__ import annotations

from typing import Any

import faiss

from ..arrays import as_id_set
from ..errors import ConfigError
from ..targets import REGISTRY as TARGETS
from ..targets import target as find_target
from ..targets.pretransform import unwrap_index
from .snapshot import Snapshot


def known_target(snapshot: Snapshot, name: str) -> Any:
    """The target that a gallery belongs to. Raises ConfigError where it is none of ours; name: the gallery's."""
    if snapshot.stored.target is None:
        kind = type(unwrap_index(snapshot.stored.index)).__name__
        raise ConfigError(f"{name}: {kind} holds no codes of ours; needs one of {', '.join(TARGETS)}")
    return snapshot.stored.target


def selector(snapshot: Snapshot, name: str, allow: Any, deny: Any) -> Any:
    """allow, deny -> a faiss.IDSelector or None. What ignores selectors is refused here, never passed over."""
    if allow is None and deny is None:
        return None
    if snapshot.on_gpu is not None:
        raise ConfigError("filters need device cpu: FAISS's GPU search takes them and ignores them")
    target = known_target(snapshot, name)
    if not target.INFO.filter:
        kind = target.shape_of(snapshot.stored.index).kind
        able = [t.INFO.name for t in map(find_target, TARGETS) if t.INFO.filter and kind in t.INFO.kinds]
        raise ConfigError(f"{name}: target {target.INFO.name} cannot filter by id; export with {' or '.join(able)}")
    parts = []
    for ids, what in ((allow, "allow"), (deny, "deny")):
        if ids is not None:
            batch = faiss.IDSelectorBatch(as_id_set(ids, what))
            parts.append(batch if what == "allow" else faiss.IDSelectorNot(batch))
    return parts[0] if len(parts) == 1 else faiss.IDSelectorAnd(*parts)
