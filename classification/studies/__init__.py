"""Many runs: study files, their queue, and where runs happen."""
