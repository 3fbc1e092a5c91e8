"""What Headwater runs on and how a person runs it: processes, the local Kafka, the command line. Only this room prints."""
