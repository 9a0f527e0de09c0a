"""Labels against rankings: tie-aware measures, and the files they are taken on."""
