"""Parts of self-contained HTML pages: document, style, charts, planes, and tables."""
