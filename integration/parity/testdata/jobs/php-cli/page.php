<?php
require 'Template.php';
echo (new Template("<h1>{{ title }}</h1>\n"))->fill(['title' => getenv('CI_PROJECT_NAME')]);
