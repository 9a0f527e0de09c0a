"""Methods trained in torch, and the one registry of all methods: a line each, imported only when asked for."""

REGISTRY = {
    "scq": "scqfaiss.methods.scq:SCQ",
    "label": "scqfaiss.methods.label:LabelCode",
    "dpq": "scqfaiss.methods.dpq:DPQ",
    "mecoq": "scqfaiss.methods.mecoq:MeCoQ",
    "mopq": "scqfaiss.methods.mopq:MoPQ",
    "phpq": "scqfaiss.methods.phpq:PHPQ",
    # Trained by FAISS; only their names stand here, so that this package never imports it.
    "pq": "scqfaiss.baselines:PQ",
    "opq": "scqfaiss.baselines:OPQ",
    "rq": "scqfaiss.baselines:RQ",
}

ALIASES = {"dpgq": "dpq"}

# Names that would be taken for one of ours: what they mean, and what to do.
MISTAKEN = {
    "deep-product-quantization": "it is the method of Klein and Wolf, CVPR 2019, which shares the letters DPQ with dpq, "
    "Deep Progressive Quantization (Gao et al., IJCAI 2019), and is not offered here; for dpq ask for dpq",
}
