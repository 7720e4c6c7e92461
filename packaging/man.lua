-- SPDX-License-Identifier: MIT
-- Turns a document into a manual page, for pandoc: a page begins with its name, its headings are
-- upper case, a link to another document names that one's page, and tables, which seldom fit
-- into 80 columns, become lists.

local about = PANDOC_WRITER_OPTIONS.variables
local part = (tostring(about.part):gsub("^#", ""):gsub("_", " ")) -- of the document: one of its sections, or "" for all
local rise = part == "" and 1 or 2 -- levels that a heading moves up

local pages = {}
for line in io.lines("packaging/man.list") do
  local name, section, source = line:match("^(%S+)%.(%d) (%S+) ")
  pages[source] = name .. "(" .. section .. ")"
end

local function link(element)
  local page = pages[element.target:match("^[^#]*")]
  return page and pandoc.Strong(page) or element.content
end

local function heading(header)
  header.level = math.max(header.level - rise, 1)
  if header.level == 1 then
    return header:walk({ Str = function(word) return pandoc.Str(word.text:upper()) end })
  end
  return header
end

-- The first cell is what the others tell of: the last one at length, those between in passing.
local function definition(titles, cells)
  local blocks = pandoc.List(cells[#cells].contents)
  for number = 2, #cells - 1 do
    local said = pandoc.utils.blocks_to_inlines(cells[number].contents)
    local title = pandoc.utils.stringify(titles[number])
    if #said > 0 and title ~= "" then
      blocks:insert(pandoc.Para(pandoc.List({ pandoc.Emph(title), pandoc.Str(": ") }) .. said))
    end
  end
  return { pandoc.utils.blocks_to_inlines(cells[1].contents), { blocks } }
end

local function list(rows)
  local titles = pandoc.List()
  for _, row in ipairs(rows.head.rows) do
    titles = row.cells:map(function(cell) return cell.contents end)
  end
  local items = pandoc.List()
  for _, body in ipairs(rows.bodies) do
    for _, row in ipairs(body.body) do
      items:insert(definition(titles, row.cells))
    end
  end
  return pandoc.DefinitionList(items):walk({
    Code = function(code) return pandoc.Code((code.text:gsub("\\|", "|"))) end,
  })
end

local function section(blocks)
  local found, inside = pandoc.List(), false
  for _, block in ipairs(blocks) do
    if block.t == "Header" and block.level <= 2 then
      inside = pandoc.utils.stringify(block) == part
    elseif inside then
      found:insert(block)
    end
  end
  assert(#found > 0, "no section " .. part)
  return pandoc.Blocks(found)
end

function Pandoc(document)
  table.remove(document.blocks, 1) -- the document's title, which the page has at its top
  local body = part == "" and document.blocks or section(document.blocks)
  body = body:walk({ Link = link, Header = heading, Table = list })
  if not (body[1].t == "Header" and pandoc.utils.stringify(body[1]) == "NAME") then
    body = pandoc.List({
      pandoc.Header(1, "NAME"),
      pandoc.Para(tostring(about.title) .. " - " .. tostring(about.about)),
      pandoc.Header(1, "DESCRIPTION"),
    }) .. body
  end
  return pandoc.Pandoc(body)
end
