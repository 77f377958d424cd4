module example.test/wordcount

go 1.21

require example.test/fields v1.0.0
