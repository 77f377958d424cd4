create table sale (town text, cents integer);
.mode csv
.import sales.csv sale
