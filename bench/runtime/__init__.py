"""What the runtime takes: messages, overlap, hosts, profiles."""
