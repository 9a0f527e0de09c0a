"""Methods trained in torch, and the one registry of all methods: a line each, imported only when asked for."""

REGISTRY = {
    "scq": "scqfaiss.methods.scq:SCQ",
    "label": "scqfaiss.methods.label:LabelCode",
    # Trained by FAISS; only their names stand here, so that this package never imports it.
    "pq": "scqfaiss.baselines:PQ",
    "opq": "scqfaiss.baselines:OPQ",
}
