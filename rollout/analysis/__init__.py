"""Whether a version is as good as another: what was counted, sequential tests, and the gates that judge by them."""
