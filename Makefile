# The one door. Each target is a script in scripts/ that says at its head what it does.
.PHONY: demo test check compat chaos bench bars fmt doc

demo:   ## two minutes: archive, look, replay, prove; BUS=kafka for a real broker
	@scripts/demo.sh

test:   ## everything, on real servers; gets what it needs; last line "N passed, N failed"
	@scripts/test.sh

check:  ## the quick inner loop: format, lints, unit tests
	@scripts/check.sh

compat: ## the RabbitMQ tests on older brokers: 4.0 and 3.10
	@scripts/compat.sh

chaos:  ## faults at random on real servers: MINUTES=10, SEED=n repeats one
	@MINUTES=$(MINUTES) SEED=$(SEED) scripts/chaos.sh

bench:  ## the paired benches
	@scripts/bench.sh

bars:   ## the long measured runs: exactness, kills, rate, memory, store away
	@scripts/bars.sh

fmt:
	cargo fmt --all

doc:
	cargo doc --workspace --no-deps --locked
