"""What only observes a worker: phases, step records, reports; and delays injected to study a straggler."""
