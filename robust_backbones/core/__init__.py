"""What everything else may use: errors, files, results, signals, command lines, packaged files."""
