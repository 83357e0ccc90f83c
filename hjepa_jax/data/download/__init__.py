"""Downloads: what is fetched by name, checked, unpacked, and kept in the cache."""
