"""What the ancestors of this project do, written plainly: the other side of benchmarks. Nothing else imports it."""
