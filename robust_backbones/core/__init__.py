"""Base modules: errors, files, results, signals, command lines, images and packaged files."""
