"""How it travels: topics, Kafka clients, batches, delivery, the link, the account. Only this room talks to Kafka clients."""
