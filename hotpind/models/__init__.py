"""Model files: the catalogue of known ones, fetching, checking and finding them."""
